"""Structured answers: which tokens may come next. Each sequence has a matcher, each token that is chosen a bitmask.

A mask is computed as soon as the token before it is known, in `commit`: `plan` finds it ready, and the device may be
at work on another step meanwhile.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilewise.types import Thinking, TokenIds

if TYPE_CHECKING:
    from llguidance import LLMatcher

logger = logging.getLogger("tilewise")

Mask = NDArray[np.int32]


class CompiledGrammar:
    """A grammar over a vocabulary; every sequence follows a copy of its parser."""

    def __init__(
        self, parser: LLMatcher, vocab_size: int, end_ids: frozenset[int], unenforced: tuple[str, ...] = ()
    ) -> None:
        """`end_ids` are the end tokens that the parser was told of."""
        self.unenforced = unenforced
        self._parser = parser
        self._vocab_size = vocab_size
        self._end_ids = end_ids

    def start(self, ignore_eos: bool, thinking: Thinking | None = None) -> TokenMatcher:
        return TokenMatcher(self._parser.deep_copy(), self._vocab_size, self._end_ids, ignore_eos, thinking)

    def try_out(self, tokens: int) -> str:
        """Follow some answer for a few tokens; return what went wrong, or an empty string."""
        matcher = self.start(ignore_eos=False)
        for _ in range(tokens):
            if matcher.finish_reason is None:
                matcher.follow(ids_in(matcher.masks()[0])[0])
        return matcher.problem


class TokenMatcher:
    """The state of one structured answer. Fulfils `types.Matcher`.

    An end token is allowed where the grammar may end; under `ignore_eos` only where nothing else may come. `min_tokens`
    is no matter of the grammar: sampling rules out early ends, unless nothing else is allowed.

    An answer that thinks first begins with `<think>`, and does not end before `</think>`: without these two rules a
    model could leave out the thinking, or the form.
    """

    def __init__(
        self,
        parser: LLMatcher,
        vocab_size: int,
        end_ids: frozenset[int],
        ignore_eos: bool,
        thinking: Thinking | None = None,
    ) -> None:
        self._parser = parser
        self._vocab_size = vocab_size
        self._words = -(-vocab_size // 32)
        self._thinking = thinking
        self._end_ids = end_ids
        self._last_resort = bits_of(end_ids if ignore_eos else (), self._words)
        self._num_accepted = 0
        self.problem = ""
        self.finish_reason: str | None = None
        self._mask = bits_of(thinking[:1], self._words) if thinking else self._next_mask()

    def masks(self, drafts: TokenIds = ()) -> Mask:
        if not drafts:
            return self._mask[None]
        ahead, rows = self._copy(), [self._mask]
        for token_id in drafts:
            ahead.follow(token_id)
            rows.append(ahead._mask)
        return np.stack(rows)

    def count_allowed(self, drafts: TokenIds) -> int:
        ahead, count = self._copy(), 0
        for token_id in drafts:
            if ahead.finish_reason is not None or not ahead._allows(token_id) or token_id in self._end_ids:
                break
            ahead.follow(token_id)
            count += 1
        return count

    def _allows(self, token_id: int) -> bool:
        return token_id // 32 < self._words and bool(self._mask[token_id // 32] >> (token_id % 32) & 1)

    def _copy(self) -> TokenMatcher:
        """Return a copy that can go ahead while this matcher stays where it is."""
        ahead = copy.copy(self)
        ahead._parser = self._parser.deep_copy()
        return ahead

    def accept(self, token_id: int) -> None:
        self.follow(token_id)
        if self.problem:
            logger.warning("A structured answer ends after %d tokens: %s", self._num_accepted, self.problem)

    def follow(self, token_id: int) -> None:
        """Take in a token as `accept` does, without a word in the log."""
        self._num_accepted += 1
        if self._thinking is not None:
            self._think(token_id, *self._thinking)
        elif token_id in self._end_ids:
            self.finish_reason = "stop"
        elif not self._parser.consume_token(token_id):
            self._fail(self._parser.get_error())
        else:
            self._mask = self._next_mask()

    def _think(self, token_id: int, opening: int, closing: int) -> None:
        # Thinking is free text: any token but an end, until the closing one hands over to the grammar.
        if token_id == opening:
            self._mask = _packed(np.arange(self._words * 32) < self._vocab_size) & ~bits_of(self._end_ids, self._words)
        elif token_id == closing:
            self._thinking, self._mask = None, self._next_mask()

    def _next_mask(self) -> Mask:
        mask = np.zeros(self._words, np.int32)
        self._parser.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._parser.is_error():
            self._fail(self._parser.get_error())
        elif not mask.any():
            self._fail("no token can follow")
        rest = mask & ~self._last_resort
        return rest if rest.any() else mask

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self.finish_reason = "error"


def bits_of(token_ids: Iterable[int], words: int) -> Mask:
    """Return a mask of these tokens alone; ids beyond it are left out."""
    flags = np.zeros(words * 32, bool)
    flags[[token_id for token_id in token_ids if 0 <= token_id < len(flags)]] = True
    return _packed(flags)


def _packed(flags: NDArray[np.bool_]) -> Mask:
    return np.packbits(flags, bitorder="little").view("<i4")


def ids_in(mask: Mask) -> list[int]:
    """Return the tokens that a mask allows, in ascending order."""
    found: list[int] = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
    return found
