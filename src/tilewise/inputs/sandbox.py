"""Renders one untrusted Jinja template: `python -m tilewise.inputs.sandbox`, one process for one template.

Jinja's sandbox keeps a template away from Python's insides, but not from looping or growing without end; an own process
under the system's limits ends that too. Standard input is JSON `{"template", "tokens", "conversations"}`; standard
output has one line of JSON a conversation, written as soon as it is known: `{"text"}` or `{"error"}`.

The environment is that of transformers' `apply_chat_template` (its `utils/chat_template_utils.py` is the source), as
templates are written for it: blocks trimmed, loop controls, `{% generation %}`, `raise_exception`, `strftime_now`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template

SECONDS = 3
"""Of computing. Real templates take milliseconds."""
MEMORY_BYTES = 2**30
CHARACTERS = 200_000
_WALL_SECONDS = 30.0  # for a machine that is too busy to let it compute


def render_all(
    template: str, conversations: Sequence[list[dict[str, Any]]], tokens: dict[str, str]
) -> list[dict[str, str]]:
    """For each conversation `{"text": prompt}` or `{"error": why there is none}`. Never raises for a bad template."""
    job = json.dumps({"template": template, "tokens": tokens, "conversations": list(conversations)})
    # -P: the folder it is called from is no place to import from.
    command = [sys.executable, "-P", "-m", "tilewise.inputs.sandbox"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        output, _ = process.communicate(job.encode(), timeout=_WALL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    results = [json.loads(line) for line in output.split(b"\n")[:-1]]  # the last may be cut short
    missing = {"error": f"it did not end within {SECONDS} seconds of computing, or broke the process that renders it"}
    return [*results, *[missing] * (len(conversations) - len(results))]


def main() -> None:
    job = json.load(sys.stdin)
    _limit()
    try:
        template = _compile(job["template"], job["tokens"])
    except Exception as error:  # whatever an untrusted template makes Jinja raise is its result
        failures = [_failure(error)] * len(job["conversations"])
        print("\n".join(map(json.dumps, failures)), flush=True)
        return
    for messages in job["conversations"]:
        print(json.dumps(_render(template, messages)), flush=True)


def _limit() -> None:
    if sys.platform == "win32":
        return
    import resource

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    seconds = int(used) + SECONDS
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_CORE: 0}
    for limit, value in limits.items():
        with suppress(ValueError, OSError):  # stricter already, or unknown to the system
            resource.setrlimit(limit, (value, value))


def _compile(template: str, tokens: dict[str, str]) -> Template:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant said, for training; its body is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012  # Jinja declares it so

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    extensions = [Generation, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = to_json
    environment.globals.update(tokens, raise_exception=fail, strftime_now=lambda form: datetime.now().strftime(form))
    return environment.from_string(template)


def _render(template: Template, messages: list[dict[str, Any]]) -> dict[str, str]:
    text = ""
    try:
        for chunk in template.generate(messages=messages, tools=None, documents=None, add_generation_prompt=True):
            text += chunk
            if len(text) > CHARACTERS:
                return {"error": f"its prompt is longer than {CHARACTERS} characters"}
    except Exception as error:  # as above
        return _failure(error)
    return {"text": text}


def _failure(error: Exception) -> dict[str, str]:
    name = type(error).__name__
    return {"error": f"{name}: {error}"[:300] if str(error) else name}


if __name__ == "__main__":
    main()
