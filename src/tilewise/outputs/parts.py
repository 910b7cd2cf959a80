"""The parts of an answer (reasoning, content, calls) as its text grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from tilewise.inputs.tool_text import ToolFormName
from tilewise.outputs.forced import ListedCalls, NamedCall
from tilewise.outputs.harmony import HarmonyDelta, HarmonySplitter
from tilewise.outputs.reasoning import ReasoningSplitter
from tilewise.outputs.tools import HERMES_TAGS, INTERNLM_TAGS, CallDelta, ToolSplitter

Calls = Literal["none", "auto", "required", "named"]


class CallReader(Protocol):
    def add(self, text: str) -> tuple[str, list[CallDelta]]: ...
    def finish(self) -> tuple[str, list[CallDelta]]: ...


class NoCalls:
    """All is content."""

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        return text, []

    def finish(self) -> tuple[str, list[CallDelta]]:
        return "", []


@dataclass(frozen=True, slots=True)
class PartsRule:
    """Which parts an answer may have."""

    reasoning: bool = True
    opened: bool = False
    """Whether the prompt ends with `<think>`."""
    calls: Calls = "none"
    name: str = ""
    """Of the function, when calls are named."""
    parallel: bool = True
    """Whether calls after the first are calls."""
    form: ToolFormName = "hermes"
    """How the model writes calls that it makes of its own accord; in harmony (`openai`), how it writes all parts."""

    def reader(self) -> CallReader:
        if self.calls == "auto" and self.form != "openai":
            return ToolSplitter(INTERNLM_TAGS if self.form == "internlm" else HERMES_TAGS)
        if self.calls == "required":
            return ListedCalls()
        return NamedCall(self.name) if self.calls == "named" else NoCalls()


@dataclass(frozen=True, slots=True)
class PartsDelta:
    """What is new."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class PartsSplitter:
    """Takes an answer's text in pieces."""

    def __init__(self, rule: PartsRule) -> None:
        self._rule = rule
        harmony = rule.form == "openai"
        self._harmony = HarmonySplitter(with_calls=rule.calls == "auto") if harmony else None
        self._reasoning = ReasoningSplitter(rule.opened) if rule.reasoning and not harmony else None
        self._calls = rule.reader()

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends within the reasoning."""
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
        """Where nobody asked for reasoning apart, it is content, as what stands between `<think>` tags is."""
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
class Parts:
    """The parts so far."""

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


def split_parts(text: str, rule: PartsRule) -> Parts:
    """The parts of a whole answer."""
    parts, splitter = Parts(), PartsSplitter(rule)
    parts.add(splitter.add(text))
    parts.add(splitter.finish())
    return parts
