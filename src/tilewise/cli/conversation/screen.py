"""Screen: what a conversation writes, and how it looks."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO

from tilewise.cli.conversation.server import Delta

_DIM, _PLAIN = "\033[2m", "\033[0m"


@dataclass(frozen=True)
class Screen:
    out: TextIO
    styled: bool
    """A terminal that knows dim text; elsewhere only the answers themselves are written."""

    def show(self, deltas: Iterable[Delta]) -> None:
        """An answer as it comes, reasoning dimmed."""
        dim = shown = False
        try:
            for delta in deltas:
                if delta.reasoning and self.styled:
                    self._write(("" if dim else _DIM) + printable(delta.reasoning))
                    dim = shown = True
                if delta.text:
                    self._write((f"{_PLAIN}\n\n" if dim else "") + printable(delta.text))
                    dim, shown = False, True
        finally:
            self._write((_PLAIN if dim else "") + ("\n" if shown else ""))

    def note(self, text: str) -> None:
        """What is said beside the answers."""
        for line in printable(text).splitlines():
            self._write(f"{_DIM}{line}{_PLAIN}\n" if self.styled else f"{line}\n")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def printable(text: str) -> str:
    r"""Without control characters, by which an answer could do things to a terminal.

    >>> printable("a\x1b]0;title\x07\tb\n")
    'a]0;title\tb\n'
    """
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
