"""Schemas, patterns, grammars and structural tags of callers -> the form that llguidance's parser takes.

A structural tag is free text in which tags have contents of a given form. Both forms that vLLM takes are read: the
older one (`structures` with begin, schema and end; `triggers`), and `format`, a tree whose types are those of the
xgrammar library, which defined them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits, grammar_from, regex_to_lark

from tilewise.errors import InvalidRequest, did_you_mean
from tilewise.inputs.prepared_schema import prepare_schema, relaxed
from tilewise.inputs.schema import unknown_keywords

WHITE_SPACE = "[ ]"
"""Pattern of the white space between two parts of JSON, at most one space.

A model that may also break and indent lines sometimes does nothing else, further from the question with each token.
"""
_ANY_TEXT = r"/(.|\n)*/"


def parser_limits() -> LLParserLimits:
    """Return limits that come to milliseconds a token, at the very worst a tenth of a second, and tens of megabytes."""
    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


def translate(form: str, text: str, options: dict[str, Any]) -> str:
    """Translate a text; `form` is "json" (a schema), "regex" or "grammar" (Lark or GBNF); `options` are of JSON.

    Raises ValueError where the library notices at once; most errors show in `check`.
    """
    if form == "json":
        if text in ("true", "false"):  # a schema too, to which options cannot be added
            text = "{}" if text == "true" else '{"enum": []}'
        return LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]
    if form == "regex":
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, use_ascii='d')}/")  # \d means 0 to 9
    # Told apart by what only GBNF writes: the library's own guess takes Lark that begins with `?start:` for GBNF.
    is_lark = "::=" not in text or re.search(r"^\s*[?!]?start\s*:(?!:=)", text, re.MULTILINE) is not None
    return LLMatcher.grammar_from_lark(text) if is_lark else grammar_from("grammar", text)


def try_out(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `{"source", "unenforced"}` of a text of `translate`, once it has been compiled; or `{"error"}`.

    llguidance overflows its stack on long chains of references, and may take minutes to intersect patterns: this is for
    a confined process.
    """
    try:
        source = translate(**job)
        problem, lacks = check(source)
    except Exception as error:  # whatever an untrusted grammar makes the library raise is its result
        source, problem, lacks = "", str(error) or type(error).__name__, []
    yield {"error": problem} if problem else {"source": source, "unenforced": lacks}


def check(source: str) -> tuple[str, list[str]]:
    """Return why a translated grammar cannot be used, "" if it can, and the parts of a schema that are not followed."""
    failed, notes = LLMatcher.validate_grammar_with_warnings(source, limits=parser_limits())
    if failed:
        return LLMatcher.validate_grammar(source, limits=parser_limits()), []
    return "", list(dict.fromkeys(name for note in notes for name in _names_in(note)))


def _names_in(note: str) -> list[str]:
    if note.startswith("Unimplemented keys: "):
        return [str(key) for key in json.loads(note.removeprefix("Unimplemented keys: "))]
    if note.startswith("Unknown format: "):
        return [f"format {note.removeprefix('Unknown format: ')}"]
    return ["oneOf"] if note.startswith("oneOf") else [note]


def tag_grammar(tag: dict[str, Any], closed: bool) -> tuple[str, dict[str, None]]:
    """Return a grammar in Lark's form, and what of its schemas is not enforced.

    Raises InvalidRequest, naming the place.
    """
    if "format" not in tag:
        _check_keys(tag, ("structures", "triggers"), "structural_tag")
        tags = [
            _old_tag(item, f"structures[{n}]") for n, item in enumerate(_items(tag, "structures", "structural_tag"))
        ]
        tag = {"format": {"type": "triggered_tags", "triggers": tag["triggers"], "tags": tags}}
    rules = _Rules(closed)
    start = rules.add(tag["format"], "structural_tag.format")
    lines = ["%llguidance {}", f"start: {start}", *rules.lines]
    return "\n".join(lines), rules.unenforced


def _old_tag(item: Any, where: str) -> dict[str, Any]:
    _check_keys(item, ("begin", "schema", "end"), where)
    content = {"type": "json_schema", "json_schema": item["schema"]}
    return {"type": "tag", "begin": item["begin"], "content": content, "end": item["end"]}


class _Rules:
    """The rules of a grammar; each format becomes one, and is known by its rule's name."""

    def __init__(self, closed: bool) -> None:
        self.lines: list[str] = []
        self.unenforced: dict[str, None] = {}
        self._closed = closed
        self._count = 0
        self._kinds: dict[str, Callable[[dict[str, Any], str], str]] = {
            "const_string": self._const,
            "json_schema": self._schema,
            "any_text": self._any_text,
            "regex": self._regex,
            "sequence": lambda part, where: " ".join(self._elements(part, where)),
            "or": lambda part, where: " | ".join(self._elements(part, where)),
            "optional": lambda part, where: f"({self._content(part, where)})?",
            "plus": lambda part, where: f"({self._content(part, where)})+",
            "star": lambda part, where: f"({self._content(part, where)})*",
            "tag": self._tag,
            "triggered_tags": self._triggered,
            "tags_with_separator": self._separated,
        }

    def add(self, part: Any, where: str) -> str:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in self._kinds:
            hint = did_you_mean(str(kind), self._kinds)
            raise InvalidRequest(f"{where}.type must be one of {', '.join(self._kinds)}, got {kind!r:.80}.{hint}")
        return self._rule(self._kinds[kind](part, where))

    def _rule(self, body: str, options: str = "", prefix: str = "part") -> str:
        self._count += 1
        name = f"{prefix}_{self._count}"
        self.lines.append(f"{name}{options}: {body}")
        return name

    def _const(self, part: dict[str, Any], where: str) -> str:
        return _quoted(_text(part, "value", where))

    def _schema(self, part: dict[str, Any], where: str) -> str:
        _check_keys(part, ("json_schema",), where)
        self.unenforced.update(unknown_keywords(part["json_schema"], "structured_outputs.structural_tag"))
        found = prepare_schema(part["json_schema"], self._closed)
        self.unenforced.update(found.unenforced)
        followed = found.followed
        if isinstance(followed, dict):
            followed = {**followed, "x-guidance": {"lenient": True}}
        return f"%json {json.dumps(followed)}"

    def _any_text(self, part: dict[str, Any], where: str) -> str:
        return self._rule(_ANY_TEXT, prefix="TEXT")

    def _regex(self, part: dict[str, Any], where: str) -> str:
        pattern, lacks = relaxed(_text(part, "pattern", where))
        self.unenforced.update(dict.fromkeys(lacks))
        return self._rule(f"/{regex_to_lark(pattern, use_ascii='d')}/", prefix="REGEX")

    def _elements(self, part: dict[str, Any], where: str) -> list[str]:
        return [self.add(item, f"{where}.elements[{n}]") for n, item in enumerate(_items(part, "elements", where))]

    def _content(self, part: dict[str, Any], where: str) -> str:
        _check_keys(part, ("content",), where)
        return self.add(part["content"], f"{where}.content")

    def _tag(self, part: dict[str, Any], where: str) -> str:
        return f"{_quoted(_text(part, 'begin', where))} {self._behind_begin(part, where)}"

    def _behind_begin(self, part: dict[str, Any], where: str) -> str:
        """Return what follows a tag's begin, its content and end; free text ends where the tag does."""
        _check_keys(part, ("content", "end"), where)
        ends = part["end"] if isinstance(part["end"], list) else [part["end"]]
        if not ends or not all(isinstance(end, str) for end in ends):
            raise InvalidRequest(f"{where}.end must be a text or a list of texts, got {part['end']!r:.80}.")
        free = isinstance(part["content"], dict) and part["content"].get("type") == "any_text"
        if free and all(ends):
            heads = [self._rule(f"{self._rule(_ANY_TEXT, prefix='TEXT')} {_quoted(end)}", "[lazy]") for end in ends]
            return f"({' | '.join(heads)})"
        return f"{self.add(part['content'], f'{where}.content')} ({' | '.join(map(_quoted, ends))})"

    def _tags(self, part: dict[str, Any], where: str) -> list[tuple[dict[str, Any], str]]:
        return [(item, f"{where}.tags[{n}]") for n, item in enumerate(_items(part, "tags", where))]

    def _triggered(self, part: dict[str, Any], where: str) -> str:
        """Return a rule for free text until a trigger comes, then one of the tags that begin with it."""
        triggers = [text for text in _items(part, "triggers", where) if isinstance(text, str) and text]
        by_trigger: dict[str, list[str]] = {}
        whole: list[str] = []
        for tag, here in self._tags(part, where):
            begin = _text(tag, "begin", here)
            trigger = next((text for text in triggers if begin.startswith(text)), None)
            if trigger is None:
                raise InvalidRequest(f"{here}.begin must begin with one of triggers, got {begin!r:.80}.")
            behind = self._rule(f"{_quoted(begin[len(trigger) :])} {self._behind_begin(tag, here)}")
            by_trigger.setdefault(trigger, []).append(behind)
            whole.append(f"{_quoted(trigger)} {behind}")
        late = [
            f"{self._rule(f'{_ANY_TEXT} {_quoted(trigger)}', '[lazy]')} ({' | '.join(behind)})"
            for trigger, behind in by_trigger.items()
        ]
        first, later = self._rule(" | ".join(whole)), self._rule(" | ".join(late))
        last = self._rule(_ANY_TEXT, prefix="TEXT")
        if part.get("stop_after_first"):
            return first if part.get("at_least_one") else f"{later} | {last}"
        return f"{first} {later}* {last}" if part.get("at_least_one") else f"{later}* {last}"

    def _separated(self, part: dict[str, Any], where: str) -> str:
        """Return a rule for tags and nothing else, with a text between them."""
        tags = self._tags(part, where)
        for item, here in tags:
            _check_keys(item, ("begin", "content", "end"), here)
        tag = self._rule(" | ".join(self.add({**item, "type": "tag"}, here) for item, here in tags))
        more = "" if part.get("stop_after_first") else f"({_quoted(_text(part, 'separator', where))} {tag})*"
        found = f"{tag} {more}"
        return found if part.get("at_least_one") else f"({found})?"


def _check_keys(part: Any, needed: tuple[str, ...], where: str) -> None:
    missing = [key for key in needed if not isinstance(part, dict) or key not in part]
    if missing:
        raise InvalidRequest(f"{where} needs {' and '.join(missing)}, got {part!r:.80}.")


def _items(part: Any, key: str, where: str) -> list[Any]:
    _check_keys(part, (key,), where)
    value = part[key]
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{where}.{key} must be a list that is not empty, got {value!r:.80}.")
    return value


def _text(part: dict[str, Any], key: str, where: str) -> str:
    _check_keys(part, (key,), where)
    if not isinstance(part[key], str):
        raise InvalidRequest(f"{where}.{key} must be a text, got {part[key]!r:.80}.")
    return str(part[key])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
