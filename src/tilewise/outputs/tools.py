"""Calls of functions in an answer, told apart from its text as both grow.

Of its own accord a model writes JSON between two tags, any number of times:
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` in the Hermes form that Qwen's models write,
`<|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>` in InternLM2's. As soon as a name and the
beginning of its arguments are there, arguments are given out as they come, as text. From then on it is a call, even if
its JSON should break; what breaks before that is content, tags included.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

HERMES_TAGS = ("<tool_call>", "</tool_call>")
INTERNLM_TAGS = ("<|action_start|><|plugin|>", "<|action_end|>")
# A name with "</" could hold the tag: such a call is read when it is whole.
_HEADER = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\<]|<(?!/)|\\[^<])+")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_NEXT = re.compile(r'[\s\[\],}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


def partial_tag(text: str, tag: str) -> int:
    """Return the length of the longest end of a text with which a tag begins; a whole tag does not count."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class CallDelta:
    """New text of call number `index`: its name, which comes first and once, or more of its arguments' text."""

    index: int
    name: str | None
    arguments: str


class CallReader:
    """A reader of answers that come in pieces; this one is for answers without calls: all is content."""

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        """Return the new content and the new parts of calls."""
        return text, []

    def finish(self) -> tuple[str, list[CallDelta]]:
        """Return what was held back at the end of the text, as content and calls."""
        return "", []


class ToolSplitter(CallReader):
    """A reader of an answer that comes in pieces; its output does not depend on where they were cut.

    White space before a call belongs neither to the content nor to the call.
    """

    def __init__(self, tags: tuple[str, str] = HERMES_TAGS) -> None:
        self._open, self._close = tags
        # An opening tag leads from content to block, a name to arguments, their end to tail, a closing tag to content.
        self._place: Literal["content", "block", "arguments", "tail"] = "content"
        self._held = ""
        self._space = ""  # before the call that has begun
        self._calls = 0
        self._scan = ObjectScan(self._close)

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        self._held += text
        content, deltas = "", list[CallDelta]()
        # Each reader takes what it can from the text that is held, and may hand over to another one. When one has
        # changed neither text nor place, it waits for more text.
        while True:
            before = (self._place, self._held)
            if self._place == "content":
                content += self._read_content()
            elif self._place == "block":
                content += self._read_block(deltas)
            elif self._place == "arguments":
                self._read_arguments(deltas)
            else:
                self._skip_tail()
            if (self._place, self._held) == before:
                return content, deltas

    def finish(self) -> tuple[str, list[CallDelta]]:
        held, self._held = self._held, ""
        if self._place == "content":
            return ("" if self._calls and not held.strip() else held), []
        if self._place == "block":
            deltas = list[CallDelta]()
            return self._whole_block(held, "", deltas), deltas
        return "", []

    def _read_content(self) -> str:
        text, tag, behind = self._held.partition(self._open)
        if tag:
            content = text.rstrip()
            self._space, self._held, self._place = text[len(content) :], behind, "block"
            return content
        ready = text[: len(text) - partial_tag(text, self._open)].rstrip()
        self._held = text[len(ready) :]
        return ready

    def _read_block(self, deltas: list[CallDelta]) -> str:
        header = _HEADER.match(self._held)
        name = name_in(header.group(1)) if header else None
        if header and name is not None:
            deltas.append(CallDelta(self._calls, name, ""))
            self._held, self._place, self._scan = self._held[header.end() :], "arguments", ObjectScan(self._close)
            return ""
        text, tag, behind = self._held.partition(self._close)
        if not tag:
            return ""
        self._held, self._place = behind, "content"
        return self._whole_block(text, tag, deltas)

    def _whole_block(self, text: str, tag: str, deltas: list[CallDelta]) -> str:
        """Add a call whose keys come in another order to `deltas`; return the block as content if it is no call."""
        call = _parse(text)
        if call is None:
            return self._space + self._open + text + tag
        name, arguments = call
        deltas += [CallDelta(self._calls, name, ""), CallDelta(self._calls, None, arguments)]
        self._calls += 1
        return ""

    def _read_arguments(self, deltas: list[CallDelta]) -> None:
        length = self._scan.read(self._held)
        if length:
            deltas.append(CallDelta(self._calls, None, self._held[:length]))
            self._held = self._held[length:]
        if self._scan.done or self._held.startswith(self._close):
            self._calls += 1
            self._place = "tail"

    def _skip_tail(self) -> None:
        _, tag, behind = self._held.partition(self._close)
        if tag:
            self._held, self._place = behind, "content"
        else:
            self._held = self._held[len(self._held) - partial_tag(self._held, self._close) :]


class ObjectScan:
    """A search for the end of a JSON object whose text comes in pieces, or of what was meant as one."""

    def __init__(self, tag: str = "") -> None:
        """`tag`, unless it is empty, ends the object as well where it stands outside of strings."""
        self.done = False
        self._tag = tag
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def read(self, text: str) -> int:
        """Return how many characters of the text belong to the object."""
        for place, letter in enumerate(text):
            if self._in_string:
                self._read_in_string(letter)
            elif letter == "<" and self._tag and self._tag.startswith(text[place : place + len(self._tag)]):
                return place  # of the tag, or of what may become it
            elif letter == '"':
                self._in_string = True
            else:
                self._depth += (letter in "{[") - (letter in "}]")
            if self._depth <= 0:
                self.done = True
                return place + 1
        return len(text)

    def _read_in_string(self, letter: str) -> None:
        if self._escaped:
            self._escaped = False
        elif letter == "\\":
            self._escaped = True
        elif letter == '"':
            self._in_string = False


def name_in(text: str) -> str | None:
    """Return the text that a JSON text stands for; None if it is another value, or no JSON."""
    try:
        name = json.loads(text)
    except ValueError:
        return None
    return _sendable(name) if isinstance(name, str) else None


def _sendable(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair, which JSON can spell and UTF-8 cannot carry."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parse(text: str) -> tuple[str, str] | None:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name:
        return None
    arguments: Any = call.get("arguments", call.get("parameters", {}))
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return _sendable(name), _sendable(written)


class NamedCall(CallReader):
    """A reader of answers that are the arguments of one function and nothing else."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        if not text:
            return "", []
        name, self._name = self._name, None
        return "", [CallDelta(0, name, text)]


class ListedCalls(CallReader):
    """A reader of answers that are a list `[{"name": ..., "arguments": {...}}, ...]`."""

    def __init__(self) -> None:
        self._held = ""
        self._calls = 0
        self._scan: ObjectScan | None = None

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        self._held += text
        deltas: list[CallDelta] = []
        while self._read(deltas):
            pass
        return "", deltas

    def _read(self, deltas: list[CallDelta]) -> bool:
        """Read the next part of a call; return True if there may be more to read."""
        if self._scan is None:
            header = _NEXT.match(self._held)
            name = None if header is None else name_in(header.group(1))
            if header is None or name is None:
                return False
            deltas.append(CallDelta(self._calls, name, ""))
            self._held, self._scan = self._held[header.end() :], ObjectScan()
        length = self._scan.read(self._held)
        if length:
            deltas.append(CallDelta(self._calls, None, self._held[:length]))
            self._held = self._held[length:]
        if not self._scan.done:
            return False
        self._calls, self._scan = self._calls + 1, None
        return True
