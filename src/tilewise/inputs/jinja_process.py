"""The process that renders one untrusted template for `jinja.py`; nothing else imports this file.

Standard input is JSON `{"template", "conversations", "options", "tokens", "seconds"}`, with options of the template for
each conversation; standard output has one line of JSON a conversation, written as soon as it is known.

The environment is that of transformers' `apply_chat_template` (its `utils/chat_template_utils.py` is the source), for
which templates are written: blocks trimmed, loop controls, `{% generation %}`, `raise_exception`, `strftime_now`.
"""

from __future__ import annotations

import codecs
import importlib
import json
import sys
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tilewise.inputs.sandbox import confine_this_process

_CHARACTERS = 200_000
_LATE = ("html", "jinja2.constants", "jinja2.debug", "pprint", "textwrap")  # what Jinja imports on first use


class Generation(Extension):
    """The tag `{% generation %}`, which marks what an assistant said, for training; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  # Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> None:
    job = json.load(sys.stdin)
    for name in _LATE:
        importlib.import_module(name)
    codecs.lookup("unicode-escape")  # of strings in templates
    confine_this_process(job["seconds"])
    for messages, options in zip(job["conversations"], job["options"], strict=True):
        print(json.dumps(_render(job["template"], job["tokens"], messages, options)), flush=True)


def _compile(source: str, tokens: dict[str, str]) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(tokens, raise_exception=_fail, strftime_now=_strftime_now)
    return environment.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _fail(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _render(
    source: str, tokens: dict[str, str], messages: list[dict[str, Any]], options: dict[str, Any]
) -> dict[str, str]:
    text = ""
    try:
        template = _compile(source, tokens)
        known = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        for chunk in template.generate(known | options):
            text += chunk
            if len(text) > _CHARACTERS:
                return {"error": f"its prompt is longer than {_CHARACTERS} characters"}
    except Exception as error:  # whatever an untrusted template makes Jinja raise is its result
        name = type(error).__name__
        return {"error": f"{name}: {error}"[:300] if str(error) else name}
    return {"text": text}


if __name__ == "__main__":
    main()
