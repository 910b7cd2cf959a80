"""Answer: the text of one sequence as it grows, and the stop strings that end it."""

from __future__ import annotations

from tilewise.inputs.spec import HeaderIds
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams
from tilewise.types import CompletionOutput, Logprob, SampledToken


class Answer:
    """Collects the tokens of one sequence.

    Text that could still become a stop string is held back, so a stop string never shows, not even in part and
    not across token borders; so are characters whose bytes are not complete.
    """

    def __init__(
        self, tokenizer: Tokenizer, sampling: SamplingParams, index: int = 0, header: HeaderIds | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._header = header
        self._in_header = False
        self._shown: list[int] = []
        self._stream = tokenizer.stream()
        self._held = ""
        wants_scores = sampling.scored_tokens is not None
        self.output = CompletionOutput(
            index, text="", token_ids=[], logprobs=[] if wants_scores else None,
            cumulative_logprob=0.0 if wants_scores else None,
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    def add(self, token: SampledToken, finish_reason: str | None, stop_reason: int | None) -> str:
        """Take in a token; returns the text that is new to the reader. May finish by a stop string."""
        output, sampling = self.output, self._sampling
        output.token_ids.append(token.token_id)
        self._score(token)
        ends = finish_reason == "stop" and not sampling.include_stop_str_in_output
        if not ends and sampling.detokenize and not (sampling.skip_special_tokens and self._is_control(token.token_id)):
            self._shown.append(token.token_id)
            self._held += self._stream.add(token.token_id)
        output.finish_reason, output.stop_reason = finish_reason, stop_reason
        if finish_reason == "length":
            self._held += self._incomplete_characters()
        # No stop string counts before min_tokens.
        if len(output.token_ids) > sampling.min_tokens:
            self._cut_at_stop_string()
        return self._release()

    def _is_control(self, token_id: int) -> bool:
        """Special tokens, and all of a message's header."""
        if self._header is None:
            return token_id in self._tokenizer.special_ids
        hidden = self._in_header or token_id in self._tokenizer.special_ids
        self._in_header = token_id in self._header.starts or (self._in_header and token_id != self._header.end)
        return hidden

    def _score(self, token: SampledToken) -> None:
        if self.output.logprobs is None or token.logprob is None or token.rank is None:
            return
        self.output.logprobs.append(named_scores(token, self._tokenizer))
        self.output.cumulative_logprob = (self.output.cumulative_logprob or 0.0) + token.logprob

    def _incomplete_characters(self) -> str:
        """At the length limit, bytes that wait for the rest of their character show as U+FFFD."""
        whole = self._tokenizer.decode(self._shown, skip_special_tokens=False)
        shown = self.output.text + self._held
        return whole[len(shown) :] if whole.startswith(shown) else ""

    def _cut_at_stop_string(self) -> None:
        hits = [(self._held.find(stop), stop) for stop in self._sampling.stop_strings if stop in self._held]
        if not hits:
            return
        start, stop = min(hits)
        end = start + len(stop) if self._sampling.include_stop_str_in_output else start
        self._held = self._held[:end]
        self.output.finish_reason, self.output.stop_reason = "stop", stop

    def _release(self) -> str:
        keep = 0 if self.finished else self._possible_stop_length()
        ready = self._held[: len(self._held) - keep]
        self._held = self._held[len(ready) :]
        self.output.text += ready
        return ready

    def _possible_stop_length(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max(map(len, self._sampling.stop_strings), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._sampling.stop_strings):
                return length
        return 0


def named_scores(token: SampledToken, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """A token, first as in vLLM's, and its alternatives as results show them; it has to have a log-probability."""
    assert token.logprob is not None
    assert token.rank is not None
    ranks = token.top_ranks or range(1, len(token.top) + 1)
    top = ((token_id, (value, rank)) for (token_id, value), rank in zip(token.top, ranks, strict=True))
    own = {token.token_id: (token.logprob, token.rank)}
    scores = {**own, **dict(top), **own}  # first, and its own rank among equals
    return {i: Logprob(value, rank, tokenizer.decode([i], False)) for i, (value, rank) in scores.items()}
