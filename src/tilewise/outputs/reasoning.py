"""`<think>...</think>` at the beginning of an answer, told apart from the answer itself as both grow."""

from __future__ import annotations

from typing import Literal

OPEN, CLOSE = "<think>", "</think>"


class ReasoningSplitter:
    """A reader of an answer that comes in pieces; its output does not depend on where they were cut.

    White space around the tags belongs to neither part. An answer that does not begin with `<think>` is all content,
    and one that ends before `</think>` all reasoning. `opened` is for prompts that end with `<think>`.
    """

    def __init__(self, opened: bool = False) -> None:
        # "start": nothing tells yet if `<think>` comes. "gap": white space between `</think>` and the content.
        self._place: Literal["start", "reasoning", "gap", "content"] = "reasoning" if opened else "start"
        self._held = ""
        self._begun = False

    @property
    def inside(self) -> bool:
        return self._place == "reasoning"

    def add(self, text: str) -> tuple[str, str]:
        """Return the new reasoning and the new content."""
        self._held += text
        reasoning = ""
        if self._place == "start":
            self._enter()
        if self._place == "reasoning":
            reasoning = self._reason()
        return reasoning, self._content()

    def finish(self) -> tuple[str, str]:
        """Return what was held back at the end of the text, as reasoning and content."""
        held, self._held = self._held, ""
        if self._place == "reasoning":
            return (held.rstrip() if self._begun else held.strip()), ""
        return "", "" if self._place == "gap" else held

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


def partial_tag(text: str, tag: str) -> int:
    """Return the length of the longest end of a text with which a tag begins; a whole tag does not count."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
