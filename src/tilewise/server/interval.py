"""Interval: text of several tokens in one chunk (`--stream-interval`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tilewise.outputs.group import Piece


@dataclass
class _Held:
    text: str = ""
    tokens: int = 0


@dataclass
class Interval:
    """Holds back the text of an answer until so many tokens have come, or its end. First tokens are not held."""

    tokens: int
    _held: dict[int, _Held] = field(default_factory=dict)

    def hold(self, piece: Piece) -> Piece:
        """The piece with the text that is due now, which may be none."""
        if self.tokens == 1:
            return piece
        first = piece.index not in self._held
        held = self._held.setdefault(piece.index, _Held())
        held.text += piece.text
        held.tokens += 1
        if not first and held.tokens < self.tokens and piece.finish_reason is None:
            return replace(piece, text="")
        text, held.text, held.tokens = held.text, "", 0
        return replace(piece, text=text)
