"""A comparison of a checkpoint's own Jinja templates with the prompt it was trained with.

Engines that follow the Jinja file ask what it says. Three forms are known in released files: without the system text,
right, and with another model's system text. The comparison is a finding for people; Tilewise builds its prompts from
`templates.py` whatever comes out. Relatives of other projects that were published with Jinja alone have their system
text and the beginning of an answer from there (`as_published`).
"""

from __future__ import annotations

import codecs
import importlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from tilewise.inputs.pieces import CONTEXT_MARKER, IMAGE_MARKER, Message, to_string
from tilewise.inputs.sandbox import run_confined
from tilewise.inputs.templates import Template
from tilewise.inputs.tokenizer_files import token_text
from tilewise.weights.folder import CheckpointFolder

if TYPE_CHECKING:
    from jinja2 import Environment, nodes
    from jinja2.parser import Parser

CONVERSATIONS: dict[str, tuple[Message, ...]] = {
    "text alone": (Message("user", "Who are you?"),),
    "a picture": (Message("user", "What is this?", images=1),),
    "several turns": (
        Message("user", "What is this?", images=1),
        Message("assistant", "A sign."),
        Message("user", "What does it say?"),
    ),
    "a system message": (Message("system", "Answer briefly."), Message("user", "Who are you?")),
}
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_SECONDS = 3  # to render; real templates take milliseconds
_CHARACTERS = 200_000  # of a rendered prompt
_LATE = ("html", "jinja2.constants", "jinja2.debug", "pprint", "textwrap")  # what Jinja imports on first use
_BEGUN = re.compile(r"<think>\s*$")
_BEFORE, _AFTER = 24, 60  # characters shown around the first difference


@dataclass(frozen=True)
class TemplateComparison:
    """One conversation, as the checkpoint's template renders it and as ours does."""

    conversation: str
    verdict: Literal["same", "differs", "fails"]
    ours: str = ""
    theirs: str = ""
    """The text around the first difference, as in `ours`, at character `position` of both; empty unless they differ."""
    position: int = 0
    error: str = ""


@dataclass(frozen=True)
class JinjaReport:
    """The findings of comparing one template."""

    files: tuple[str, ...]
    """Files that hold the template; several may hold the same."""
    comparisons: tuple[TemplateComparison, ...]
    causes: tuple[str, ...]
    """Known reasons of the differences, in plain words; empty when none is known."""

    @property
    def differs(self) -> bool:
        return any(comparison.verdict != "same" for comparison in self.comparisons)


def compare_templates(folder: CheckpointFolder, template: Template, start: str = "") -> tuple[JinjaReport, ...]:
    """Return one report for each different template of the checkpoint. `start` is the start token's text, if any."""
    tokens = token_texts(folder)
    return tuple(_compare(source, files, template, start, tokens) for source, files in own_templates(folder).items())


def as_published(template: Template, folder: CheckpointFolder) -> Template:
    """Return the template with the system text and openings, thinking or not, that the checkpoint's own renders.

    Turns stay as they are. Where the checkpoint has no template, or one that fails or has other turns, all stays.
    """
    source = next(iter(own_templates(folder)), None)
    if source is None:
        return template
    # One question is rendered with thinking left open, off and on: "off" has the opening, and what "on" has behind it
    # begins a thought.
    tokens, asked = token_texts(folder), "Who are you?"
    options: list[dict[str, Any]] = [{}, {"enable_thinking": False}, {"enable_thinking": True}]
    results = render_all(source, [_wire([Message("user", asked)])] * len(options), tokens, options)
    read = [_read(template, result.get("text", ""), asked, tokens.get("bos_token", "")) for result in results]
    if None in read:
        return template
    (_, unasked), (system, opening), (thinking, think_opening) = (found for found in read if found is not None)
    if opening == think_opening:  # of models that always think
        opening = _BEGUN.sub("", opening)
    if not think_opening.startswith(opening):  # thoughts are begun by leaving something out
        return replace(template, system=system, opening=unasked, thinking=None, think_opening="", thinks=False)
    begun = think_opening.removeprefix(opening)
    thinks = bool(begun) and unasked == think_opening
    return replace(template, system=system, opening=opening, thinking=thinking, think_opening=begun, thinks=thinks)


def _read(template: Template, prompt: str, asked: str, start: str) -> tuple[str, str] | None:
    user = template.turns["user"].replace("{}", asked)
    before, found, opening = prompt.removeprefix(start).partition(user)
    head, tail = template.turns["system"].split("{}")
    if not found or not opening or (before and not (before.startswith(head) and before.endswith(tail))):
        return None
    return before.removeprefix(head).removesuffix(tail), opening


def own_templates(folder: CheckpointFolder) -> dict[str, tuple[str, ...]]:
    """Return each template with the files that hold it; of named ones, default alone counts: others are for tools."""
    found: dict[str, tuple[str, ...]] = {}
    plain = folder.path / "chat_template.jinja"
    if plain.is_file():
        found[plain.read_text(encoding="utf-8", errors="replace")] = (plain.name,)
    for name in ("chat_template.json", "tokenizer_config.json"):
        source = _default(folder.optional(name).get("chat_template"))
        if source is not None:
            found[source] = (*found.get(source, ()), name)
    return found


def _default(value: Any) -> str | None:
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default", next(iter(named.values()), None))
    return value if isinstance(value, str) else None


def token_texts(folder: CheckpointFolder) -> dict[str, str]:
    """Return the special tokens that templates may name."""
    config = folder.optional("tokenizer_config.json")
    texts = {name: token_text(config.get(name, "")) for name in _TOKENS}
    return {name: text for name, text in texts.items() if text is not None}


def _compare(
    source: str, files: tuple[str, ...], template: Template, start: str, tokens: dict[str, str]
) -> JinjaReport:
    rendered = render_all(source, [_wire(messages) for messages in CONVERSATIONS.values()], tokens)
    results = dict(zip(CONVERSATIONS, rendered, strict=True))
    ours = {
        name: to_string(template.render(messages, template.thinks_if(None))) for name, messages in CONVERSATIONS.items()
    }
    theirs = {name: _unified(result["text"], start) for name, result in results.items() if "text" in result}
    comparisons = tuple(
        _difference(name, ours[name], theirs[name])
        if name in theirs
        else TemplateComparison(name, "fails", error=result["error"])
        for name, result in results.items()
    )
    return JinjaReport(files, comparisons, tuple(_causes(template, ours, theirs)))


def render_all(
    template: str,
    conversations: Sequence[list[dict[str, Any]]],
    tokens: dict[str, str],
    options: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, str]]:
    """Return for each conversation `{"text": prompt}`, or `{"error": why there is none}`: a bad template never raises.

    They are rendered in another process: Jinja's sandbox keeps a template away from Python's insides, but not from
    looping or growing without end. `tokens` are the special tokens that templates may name (`bos_token` ...), `options`
    what each conversation asks of the template (`enable_thinking`).
    """
    asked = list(options or [{}] * len(conversations))
    missing = {"error": f"it did not end within {_SECONDS} seconds of computing, or broke the process that renders it"}
    job = [template, tokens, conversations, asked]
    return run_confined(render_untrusted, job, len(conversations), missing, _SECONDS)


def render_untrusted(job: list[Any]) -> Iterator[dict[str, str]]:
    """Yield `{"text"}` or `{"error"}` for each conversation; this is for a confined process."""
    source, tokens, conversations, options = job
    for name in _LATE:
        importlib.import_module(name)
    codecs.lookup("unicode-escape")  # of strings in templates
    environment = _environment(tokens)
    return (
        _render(environment, source, messages, asked) for messages, asked in zip(conversations, options, strict=True)
    )


def _environment(tokens: dict[str, str]) -> Environment:
    """Return the environment of transformers' `apply_chat_template`, for which templates are written.

    Blocks are trimmed, and there are loop controls, `{% generation %}`, `raise_exception` and `strftime_now`. Source:
    its `utils/chat_template_utils.py`.
    """
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag that marks what an assistant said, for training; its body is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012  # Jinja declares it so

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    extensions = [Generation, LoopControlExtension]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = to_json
    environment.globals.update(tokens, raise_exception=fail, strftime_now=lambda form: datetime.now().strftime(form))
    return environment


def _render(
    environment: Environment, source: str, messages: list[dict[str, Any]], options: dict[str, Any]
) -> dict[str, str]:
    text = ""
    try:
        known = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        for chunk in environment.from_string(source).generate(known | options):
            text += chunk
            if len(text) > _CHARACTERS:
                return {"error": f"its prompt is longer than {_CHARACTERS} characters"}
    except Exception as error:  # whatever an untrusted template makes Jinja raise is its result
        name = type(error).__name__
        return {"error": f"{name}: {error}"[:300] if str(error) else name}
    return {"text": text}


def _wire(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as servers hand them to a template: a text alone is a string, pictures make a list of parts."""
    wire: list[dict[str, Any]] = []
    for message in messages:
        parts = [*[{"type": "image"}] * message.images, {"type": "text", "text": message.text}]
        wire.append({"role": message.role, "content": parts if message.images else message.text})
    return wire


def _unified(text: str, start: str) -> str:
    """Write every picture as `<image>`, and drop the start token, which some templates leave to tokenizers."""
    return CONTEXT_MARKER.sub(IMAGE_MARKER, text.removeprefix(start))


def _difference(name: str, ours: str, theirs: str) -> TemplateComparison:
    if ours == theirs:
        return TemplateComparison(name, "same")
    pairs = enumerate(zip(ours, theirs, strict=False))
    place = next((at for at, (our, their) in pairs if our != their), min(len(ours), len(theirs)))
    shown = _around(place, ours), _around(place, theirs)
    return TemplateComparison(name, "differs", *shown, position=min(place, _BEFORE + 1))


def _around(place: int, text: str) -> str:
    """Return an excerpt, with dots where it is cut; the place is then behind `_BEFORE` characters and the dots."""
    before = text[:place] if place <= _BEFORE + 1 else "…" + text[place - _BEFORE : place]
    return before + text[place : place + _AFTER] + ("…" if len(text) > place + _AFTER else "")


def _causes(template: Template, ours: dict[str, str], theirs: dict[str, str]) -> Iterator[str]:
    if "text alone" in theirs:
        yield from _system_cause(template, theirs["text alone"])
        yield from _break_cause(template, ours["text alone"], theirs["text alone"])
    picture = theirs.get("a picture")
    if theirs and (picture is None or re.search(r"""['"]type['"]:""", picture)):
        yield "It takes text only: content in parts, as pictures come, breaks it or is printed as Python writes it."


def _system_cause(template: Template, prompt: str) -> Iterator[str]:
    """Yield what is wrong with the system text of a prompt for which no system message was given."""
    before, after = template.turns["system"].split("{}")
    found = re.match(f"{re.escape(before)}(.*?){re.escape(after.rstrip())}", prompt, re.DOTALL)
    if found is None and prompt.startswith(template.turns["user"].split("{}")[0]):
        yield "It has no default system message: a request without one goes without the text of the training."
    elif found is not None and found[1].strip() != template.system:
        yield f"Its system text is not the one of the training: {found[1].strip()[:200]!r}."


def _break_cause(template: Template, ours: str, theirs: str) -> Iterator[str]:
    end = template.turns["user"].split("{}")[1].rstrip()
    has, should = f"{end}\n" in theirs, f"{end}\n" in ours
    if end in theirs and has != should:
        yield f"It puts {'a' if has else 'no'} line break after {end}, the training {'did' if should else 'did not'}."
