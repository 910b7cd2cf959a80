"""The parts of an answer (reasoning, content, calls) as its text grows.

Reasoning is `<think>...</think>` at the beginning. Answers of GPT-OSS are messages of several channels: the prompt ends
with `<|start|>assistant`, and the model goes on `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>
final<|message|>...`; a call has a recipient in its header, ` to=functions.NAME`, before the channel or behind it
(openai/harmony, `docs/format.md`). Text that comes without a header is content, as that of a structured answer is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from tilewise.inputs.tool_text import ToolFormName
from tilewise.outputs.tools import (
    HERMES_TAGS,
    INTERNLM_TAGS,
    CallDelta,
    CallReader,
    ListedCalls,
    NamedCall,
    ToolSplitter,
    partial_tag,
)

OPEN, CLOSE = "<think>", "</think>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_TAG = re.compile(r"<\|(?:start|channel|message|constrain|end|call|return)\|>")
_TAGS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", *_ENDS)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w*)")
_HEADER_STARTS = ("<|start|>", "<|channel|>")
Kind = Literal["reasoning", "content", "call"]
Calls = Literal["none", "auto", "required", "named"]


@dataclass(slots=True)
class PartsDelta:
    """The new reasoning, content and calls that a piece of an answer brought."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)

    def __add__(self, later: PartsDelta) -> PartsDelta:
        return PartsDelta(self.reasoning + later.reasoning, self.content + later.content, [*self.calls, *later.calls])


class ReasoningSplitter:
    """A reader of an answer that comes in pieces; its output does not depend on where they were cut.

    White space around the tags belongs to neither part. An answer that does not begin with `<think>` is all content,
    and one that ends before `</think>` all reasoning. `opened` is for prompts that end with `<think>`; unless reasoning
    is to be told `apart`, all is content.
    """

    def __init__(self, opened: bool = False, apart: bool = True) -> None:
        # "start": nothing tells yet if `<think>` comes. "gap": white space between `</think>` and the content.
        self._place: Literal["start", "reasoning", "gap", "content"] = "reasoning" if opened else "start"
        if not apart:
            self._place = "content"
        self._held = ""
        self._begun = False

    @property
    def inside(self) -> bool:
        return self._place == "reasoning"

    def add(self, text: str) -> PartsDelta:
        self._held += text
        if self._place == "start":
            self._enter()
        reasoning = self._reason() if self._place == "reasoning" else ""
        return PartsDelta(reasoning, self._content())

    def finish(self) -> PartsDelta:
        """Return what was held back at the end of the text."""
        held, self._held = self._held, ""
        if self._place == "reasoning":
            return PartsDelta(held.rstrip() if self._begun else held.strip())
        return PartsDelta(content="" if self._place == "gap" else held)

    def _enter(self) -> None:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._place, self._held = "reasoning", text[len(OPEN) :]
        elif not OPEN.startswith(text):
            self._place = "content"

    def _reason(self) -> str:
        before, tag, behind = self._held.partition(CLOSE)
        if tag:
            self._place, self._held = "gap", behind
            return before.rstrip() if self._begun else before.strip()
        if not self._begun:
            self._held = self._held.lstrip()
        ready = self._held[: len(self._held) - partial_tag(self._held, CLOSE)].rstrip()
        self._held = self._held[len(ready) :]
        self._begun = self._begun or bool(ready)
        return ready

    def _content(self) -> str:
        if self._place == "gap":
            self._held = self._held.lstrip()
            if self._held:
                self._place = "content"
        if self._place != "content":
            return ""
        ready, self._held = self._held, ""
        return ready


class HarmonySplitter:
    """A reader of an answer that comes in pieces, control tokens written out; its output does not depend on the cuts.

    `with_calls` is for answers in which functions may be called. Reasoning that nobody asked to have apart is content
    in its place. Messages of one kind are joined by line breaks.
    """

    def __init__(self, with_calls: bool, with_reasoning: bool = True) -> None:
        self._with_calls, self._with_reasoning = with_calls, with_reasoning
        self._held = ""
        self._in_header = False
        self._header = ""
        self._kind: Kind = "content"
        self._calls = 0
        self._said: set[Kind] = set()
        self._gap = False  # a message has begun or ended since the last text was given out
        self._begun = False

    @property
    def inside(self) -> bool:
        """True if the text so far ends within the reasoning."""
        return self._kind == "reasoning" and not self._in_header

    def add(self, text: str) -> PartsDelta:
        self._held += text
        delta = PartsDelta()
        if not self._begun and not self._begin():
            return delta
        while tag := _TAG.search(self._held):
            self._give(self._held[: tag.start()], delta)
            self._held = self._held[tag.end() :]
            self._pass(tag.group(), delta)
        keep = max(partial_tag(self._held, known) for known in _TAGS)
        self._give(self._held[: len(self._held) - keep], delta)
        self._held = self._held[len(self._held) - keep :]
        return delta

    def finish(self) -> PartsDelta:
        """Return what was held back at the end of the text; a header without a message shows nothing."""
        held, self._held = self._held, ""
        delta = PartsDelta()
        self._give(held, delta)
        return delta

    def _begin(self) -> bool:
        """Return False until it is clear how the answer begins.

        It may begin in the middle of the header that the prompt has begun: with its recipient, ` to=`.
        """
        if " to=".startswith(self._held):
            return False
        self._begun = True
        self._in_header = self._held.startswith(" to=")
        return True

    def _pass(self, tag: str, delta: PartsDelta) -> None:
        """Take a tag. A header begins with `<|start|>`, or `<|channel|>` where the prompt has begun the message.

        It ends with `<|message|>`, and what lies between names the channel and the recipient of the message behind it.
        """
        if tag in _HEADER_STARTS:
            if not self._in_header:
                self._in_header, self._header = True, ""
            self._header += tag
        elif tag == "<|message|>":
            self._open(delta)
        elif tag in _ENDS:
            self._in_header, self._kind, self._gap = False, "content", True

    def _open(self, delta: PartsDelta) -> None:
        channel, recipient = _CHANNEL.search(self._header), _RECIPIENT.search(self._header)
        self._in_header, self._header = False, ""
        self._kind, self._gap = "content", True
        if recipient and recipient.group(1) != "assistant" and self._with_calls:
            self._kind = "call"
            delta.calls.append(CallDelta(self._calls, recipient.group(1), ""))
            self._calls += 1
        elif channel and channel.group(1) == "analysis":
            self._kind = "reasoning"

    def _give(self, text: str, delta: PartsDelta) -> None:
        if self._in_header:
            self._header += text
        elif text and self._kind == "call":
            delta.calls.append(CallDelta(self._calls - 1, None, text))
        elif text:
            line = "\n" if self._gap and self._kind in self._said else ""
            self._gap = False
            self._said.add(self._kind)
            if self._kind == "reasoning" and self._with_reasoning:
                delta.reasoning += line + text
            else:
                delta.content += line + text


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
        return NamedCall(self.name) if self.calls == "named" else CallReader()


class PartsSplitter:
    """A reader of an answer that comes in pieces, which tells its parts apart."""

    def __init__(self, rule: PartsRule) -> None:
        self._rule = rule
        self._splitter: HarmonySplitter | ReasoningSplitter = (
            HarmonySplitter(rule.calls == "auto", rule.reasoning)
            if rule.form == "openai"
            else ReasoningSplitter(rule.opened, apart=rule.reasoning)
        )
        self._calls = rule.reader()

    @property
    def in_reasoning(self) -> bool:
        return self._splitter.inside

    def add(self, text: str) -> PartsDelta:
        return self._split(self._splitter.add(text))

    def finish(self) -> PartsDelta:
        delta = self._split(self._splitter.finish())
        content, calls = self._calls.finish()
        return PartsDelta(delta.reasoning, delta.content + content, [*delta.calls, *self._taken(calls)])

    def _split(self, found: PartsDelta) -> PartsDelta:
        """Return the parts with calls told apart from the content."""
        content, calls = self._calls.add(found.content)
        return PartsDelta(found.reasoning, content, self._taken([*found.calls, *calls]))

    def _taken(self, calls: list[CallDelta]) -> list[CallDelta]:
        return [call for call in calls if self._rule.parallel or call.index == 0]


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


class AnswerReader:
    """A reader of one answer, token by token, which keeps the parts that it has found."""

    def __init__(self, rule: PartsRule) -> None:
        self._splitter = PartsSplitter(rule)
        self.parts = AnswerParts()
        self.reasoning_tokens = 0
        """Tokens of the reasoning so far, shown or not."""

    @property
    def in_reasoning(self) -> bool:
        return self._splitter.in_reasoning

    def add(self, text: str, ended: bool = False) -> PartsDelta:
        """Take the text of one token; return what it adds, with all that was held back if it is the last one."""
        delta = self._splitter.add(text)
        self.reasoning_tokens += self._splitter.in_reasoning
        if ended:
            delta += self._splitter.finish()
        self.parts.add(delta)
        return delta
