"""Guesses at what an answer says next: what followed the same few tokens before (prompt lookup).

Answers that quote their prompt, or themselves, repeat tokens in runs. Source: Saxena 2023, "Prompt Lookup Decoding".
"""

from __future__ import annotations

from collections.abc import Iterable

from tilewise.types import TokenIds


class PromptLookup:
    """An index of one sequence: where each of its short runs of tokens (n-grams) was last followed by another token.

    Each token is indexed once, so that a guess costs the same however long the sequence is.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._ids: list[int | None] = []
        self._followed_at: dict[tuple[int | None, ...], int] = {}
        """Position behind the last occurrence of each n-gram that another token has followed."""
        self._text_start = 0
        """Position behind the last image token; no n-gram reaches over one."""

    def __len__(self) -> int:
        return len(self._ids)

    def take_in(self, token_ids: Iterable[int | None]) -> None:
        """Append tokens of the sequence; None stands for an image token, which says nothing."""
        for token_id in token_ids:
            position = len(self._ids)
            if token_id is None:
                self._text_start = position + 1
            # Only now, as its next token comes, is the n-gram in front of it indexed: so the end of the sequence, which
            # `guess` looks up, finds an earlier occurrence and never itself.
            for length in self._lengths:
                if position - length >= self._text_start:
                    self._followed_at[tuple(self._ids[-length:])] = position
            self._ids.append(token_id)

    def guess(self, most: int) -> TokenIds:
        """Return up to `most` tokens that followed when the sequence's end last occurred before, the longest end first.

        What has followed so far is taken to repeat, so that a loop of any length fills the guess.
        """
        for length in self._lengths:
            start = self._followed_at.get(tuple(self._ids[-length:]))
            if start is not None:
                period = len(self._ids) - start
                return _until_none(self._ids[start + place % period] for place in range(most))
        return ()


def _until_none(token_ids: Iterable[int | None]) -> TokenIds:
    found: list[int] = []
    for token_id in token_ids:
        if token_id is None:
            break
        found.append(token_id)
    return tuple(found)
