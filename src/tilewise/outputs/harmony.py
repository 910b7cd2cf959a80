"""Answers of GPT-OSS: messages of several channels, told apart as they grow.

The prompt ends with `<|start|>assistant`, and the model goes on `<|channel|>analysis<|message|>...<|end|><|start|>
assistant<|channel|>final<|message|>...`; a call has a recipient in its header, ` to=functions.NAME`, before the channel
or behind it (openai/harmony, `docs/format.md`). Text that comes without a header is content, as that of a structured
answer is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from tilewise.outputs.reasoning import partial_tag
from tilewise.outputs.tools import CallDelta

_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_TAG = re.compile(r"<\|(?:start|channel|message|constrain|end|call|return)\|>")
_TAGS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", *_ENDS)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w*)")
_HEADER_STARTS = ("<|start|>", "<|channel|>")
Kind = Literal["reasoning", "content", "call"]


@dataclass
class HarmonyDelta:
    """The new reasoning, content and calls that a piece of an answer brought."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class HarmonySplitter:
    """A reader of an answer that comes in pieces, control tokens written out; its output does not depend on the cuts.

    `with_calls` is for answers in which functions may be called. Messages of one kind are joined by line breaks.
    """

    def __init__(self, with_calls: bool) -> None:
        self._with_calls = with_calls
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

    def add(self, text: str) -> HarmonyDelta:
        self._held += text
        delta = HarmonyDelta()
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

    def finish(self) -> HarmonyDelta:
        """Return what was held back at the end of the text; a header without a message shows nothing."""
        held, self._held = self._held, ""
        delta = HarmonyDelta()
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

    def _pass(self, tag: str, delta: HarmonyDelta) -> None:
        if tag in _HEADER_STARTS:
            if not self._in_header:
                self._in_header, self._header = True, ""
            self._header += tag
        elif tag == "<|message|>":
            self._open(delta)
        elif tag in _ENDS:
            self._in_header, self._kind, self._gap = False, "content", True

    def _open(self, delta: HarmonyDelta) -> None:
        channel, recipient = _CHANNEL.search(self._header), _RECIPIENT.search(self._header)
        self._in_header, self._header = False, ""
        self._kind, self._gap = "content", True
        if recipient and recipient.group(1) != "assistant" and self._with_calls:
            self._kind = "call"
            delta.calls.append(CallDelta(self._calls, recipient.group(1), ""))
            self._calls += 1
        elif channel and channel.group(1) == "analysis":
            self._kind = "reasoning"

    def _give(self, text: str, delta: HarmonyDelta) -> None:
        if self._in_header:
            self._header += text
        elif text and self._kind == "call":
            delta.calls.append(CallDelta(self._calls - 1, None, text))
        elif text:
            line = "\n" if self._gap and self._kind in self._said else ""
            self._gap = False
            self._said.add(self._kind)
            if self._kind == "reasoning":
                delta.reasoning += line + text
            else:
                delta.content += line + text
