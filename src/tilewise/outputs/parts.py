"""The parts of an answer (reasoning, content, calls) as its text grows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tilewise.inputs.tool_text import ToolFormName
from tilewise.outputs.harmony import HarmonyDelta, HarmonySplitter
from tilewise.outputs.reasoning import ReasoningSplitter
from tilewise.outputs.tools import HERMES_TAGS, INTERNLM_TAGS, CallDelta, ObjectScan, ToolSplitter, name_in

_NEXT = re.compile(r'[\s\[\],}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


class NamedCall:
    """A reader of answers that are the arguments of one function and nothing else."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        deltas: list[CallDelta] = []
        if text:
            deltas = [CallDelta(0, self._name, text)]
            self._name = None
        return "", deltas

    def finish(self) -> tuple[str, list[CallDelta]]:
        return "", []


class ListedCalls:
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

    def finish(self) -> tuple[str, list[CallDelta]]:
        return "", []

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


Calls = Literal["none", "auto", "required", "named"]


class CallReader(Protocol):
    def add(self, text: str) -> tuple[str, list[CallDelta]]: ...
    def finish(self) -> tuple[str, list[CallDelta]]: ...


class NoCalls:
    """A reader of answers without calls: all is content."""

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        return text, []

    def finish(self) -> tuple[str, list[CallDelta]]:
        return "", []


@dataclass(frozen=True, slots=True)
class PartsRule:
    """The parts that an answer may have, and how the model writes them."""

    reasoning: bool = True
    opened: bool = False
    """True if the prompt ends with `<think>`."""
    calls: Calls = "none"
    name: str = ""
    """Name of the function, when calls are `named`."""
    parallel: bool = True
    """False = calls after the first are left out."""
    form: ToolFormName = "hermes"
    """Form of the calls that the model makes of its own accord; with `openai` (harmony), the form of all parts."""

    def reader(self) -> CallReader:
        if self.calls == "auto" and self.form != "openai":
            return ToolSplitter(INTERNLM_TAGS if self.form == "internlm" else HERMES_TAGS)
        if self.calls == "required":
            return ListedCalls()
        return NamedCall(self.name) if self.calls == "named" else NoCalls()


@dataclass(frozen=True, slots=True)
class PartsDelta:
    """The new reasoning, content and calls that a piece of an answer brought."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class PartsSplitter:
    """A reader of an answer that comes in pieces, which tells its parts apart."""

    def __init__(self, rule: PartsRule) -> None:
        self._rule = rule
        harmony = rule.form == "openai"
        self._harmony = HarmonySplitter(with_calls=rule.calls == "auto") if harmony else None
        self._reasoning = ReasoningSplitter(rule.opened) if rule.reasoning and not harmony else None
        self._calls = rule.reader()

    @property
    def in_reasoning(self) -> bool:
        """True if the text so far ends within the reasoning."""
        return any(splitter is not None and splitter.inside for splitter in (self._reasoning, self._harmony))

    def add(self, text: str) -> PartsDelta:
        if self._harmony:
            return self._of_messages(self._harmony.add(text))
        reasoning, rest = self._reasoning.add(text) if self._reasoning else ("", text)
        return self._delta(reasoning, *self._calls.add(rest))

    def finish(self) -> PartsDelta:
        if self._harmony:
            found = self._of_messages(self._harmony.finish())
            content, calls = self._calls.finish()
            return self._delta(found.reasoning, found.content + content, [*found.calls, *calls])
        reasoning, rest = self._reasoning.finish() if self._reasoning else ("", "")
        content, calls = self._calls.add(rest)
        more, last = self._calls.finish()
        return self._delta(reasoning, content + more, [*calls, *last])

    def _of_messages(self, found: HarmonyDelta) -> PartsDelta:
        """Return the new parts of a harmony answer.

        Reasoning that nobody asked to have apart is content, as what stands between `<think>` tags is then.
        """
        if not self._rule.reasoning:
            found = HarmonyDelta("", found.reasoning + found.content, found.calls)
        content, calls = self._calls.add(found.content)
        return self._delta(found.reasoning, content, [*found.calls, *calls])

    def _delta(self, reasoning: str, content: str, calls: list[CallDelta]) -> PartsDelta:
        return PartsDelta(reasoning, content, tuple(c for c in calls if self._rule.parallel or c.index == 0))


@dataclass(slots=True)
class Call:
    name: str
    arguments: str = ""


@dataclass(slots=True)
class AnswerParts:
    """The parts of an answer so far."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, delta: PartsDelta) -> None:
        self.reasoning += delta.reasoning
        self.content += delta.content
        for call in delta.calls:
            if call.name is not None:
                self.calls.append(Call(call.name))
            self.calls[call.index].arguments += call.arguments


def split_parts(text: str, rule: PartsRule) -> AnswerParts:
    """Return the parts of a whole answer."""
    parts, splitter = AnswerParts(), PartsSplitter(rule)
    parts.add(splitter.add(text))
    parts.add(splitter.finish())
    return parts
