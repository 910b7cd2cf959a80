"""ContextWindow: what lengths of prompts a context holds, found out before a tokenizer or an engine pays for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tilewise.errors import InvalidField, InvalidRequest, TooLong
from tilewise.inputs.pieces import ImageSlot, Piece, Text
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams

MAX_CHARACTERS = 2**21
"""Most characters of a prompt's texts: a tokenizer takes seconds for them, and hundreds of bytes for each."""
_USUAL = 8  # characters a token; texts of more a token are hardly anything but white space
_SLICE = 2**14  # characters that are counted at a time

Side = Literal["left", "right"]


@dataclass(frozen=True)
class ContextWindow:
    """The context of an engine, which holds a prompt and at least one token of its answer."""

    tokenizer: Tokenizer
    max_model_len: int
    tokens_per_tile: int

    def check_text(self, pieces: Sequence[Piece], sampling: SamplingParams, keep_last: int | None) -> None:
        """Raise InvalidRequest for texts that no context holds, before a tokenizer takes minutes and gigabytes to count
        them; TooLong where they would fit if they were cut or only counted.
        """
        texts = [piece.text for piece in pieces if isinstance(piece, Text)]
        characters = sum(map(len, texts))
        if characters > MAX_CHARACTERS:
            raise InvalidRequest(
                f"The prompt has {characters} characters, the limit is {MAX_CHARACTERS}: send a shorter text."
            )
        if keep_last is not None or sampling.truncate_prompt_tokens is not None:
            return
        least = len(pieces) - len(texts)  # of each other piece at least one token comes
        if characters > _USUAL * self.max_model_len:
            least += self._count_until(texts, 2 * self.max_model_len)
        # Where a text is sliced, a word may become two tokens: only what is beyond doubt is refused without its ids.
        if least >= 2 * self.max_model_len:
            raise TooLong(
                f"The prompt has {characters} characters, which are {least} tokens or more, the context holds "
                f"{self.max_model_len} with at least one for the answer: send a shorter text, or start the engine with "
                "a larger max_model_len.",
                prompt_tokens=least,
                limit=self.max_model_len,
                output_tokens=sampling.max_tokens or 1,
            )

    def _count_until(self, texts: Sequence[str], enough: int) -> int:
        """Return about how many tokens texts are, or a number from `enough` on as soon as that is certain."""
        count = 0
        for text in texts:
            for start in range(0, len(text), _SLICE):
                count += len(self.tokenizer.encode_text(text[start : start + _SLICE]))
                if count >= enough:
                    return count
        return count

    def cut(
        self, ids: list[int | ImageSlot], sampling: SamplingParams, keep_last: int | None, side: Side
    ) -> list[int | ImageSlot]:
        """Return the ids of a prompt without those in excess on one side; one with pictures cannot be cut."""
        keep_last = sampling.truncate_prompt_tokens if keep_last is None else keep_last
        if keep_last is None:
            return ids
        fits = max(1, self.max_model_len - (sampling.max_tokens or 1))
        if not -1 <= keep_last <= self.max_model_len or keep_last == 0:
            raise InvalidField(
                "truncate_prompt_tokens",
                f"truncate_prompt_tokens must be -1 or from 1 to {self.max_model_len}, got {keep_last}.",
            )
        if any(isinstance(item, ImageSlot) for item in ids):
            raise InvalidField(
                "truncate_prompt_tokens",
                "truncate_prompt_tokens would cut pictures: send fewer of them, or a shorter conversation.",
            )
        kept = fits if keep_last == -1 else keep_last
        return ids[-kept:] if side == "left" else ids[:kept]

    def check(self, prompt: Sequence[int], tiles: int, videos: Sequence[int], wanted: int | None) -> None:
        """Raise TooLong for a prompt, all its tokens written out, without room for a token behind it.

        `videos` are the frames of each, one tile a frame; `wanted` is how many tokens were asked for.
        """
        if not prompt:
            raise InvalidRequest("The prompt is empty: it needs at least one token.")
        if len(prompt) < self.max_model_len:
            return
        raise TooLong(
            f"The prompt has {len(prompt)} tokens ({tiles} tiles of {self.tokens_per_tile} tokens and "
            f"{len(prompt) - tiles * self.tokens_per_tile} others), the context holds {self.max_model_len} with "
            "at least one for the answer: use fewer pictures, a smaller max_dynamic_patch, or a larger max_model_len."
            f"{self._frames_that_fit(len(prompt), videos) if videos else ''}",
            prompt_tokens=len(prompt),
            limit=self.max_model_len,
            output_tokens=wanted or 1,
        )

    def _frames_that_fit(self, tokens: int, videos: Sequence[int]) -> str:
        """Return what to ask for instead, as a sentence; frames are never left out of what was asked."""
        # Take the last frame off all the longest videos at once, until the prompt fits.
        fit = max(videos)
        while fit and tokens >= self.max_model_len:
            tokens -= sum(frames >= fit for frames in videos) * self._frame_tokens(fit)
            fit -= 1
        of_each = "it" if len(videos) == 1 else "each of them"
        came = f" Of {sum(videos)} frames of {len(videos)} video(s)"
        return f"{came}, {fit} of {of_each} would fit: ask for num_frames={fit}." if fit else f"{came}, none would fit."

    def _frame_tokens(self, number: int) -> int:
        """Return the tokens of frame `number` behind another one, the line that names it included."""
        line = self.tokenizer.encode_pieces([ImageSlot(0), Text(f"\nFrame{number}: "), ImageSlot(1)])
        # Without the two slots of the sample, with `<img>` and `</img>` of one frame.
        return len(line) - 2 + 2 + self.tokens_per_tile
