"""Beam search over an engine that answers one token at a time. Names, scores and results are vLLM's.

Every step asks for one token behind each beam, with the log-probabilities of the 2 * beam_width likeliest; the prefix
cache makes the repeated beginnings cheap. A beam that takes an end token is complete, the best of the others go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams
from tilewise.types import Logprob, Request, RequestOutput

MAX_BEAM_WIDTH = 64

Ask = Callable[[Sequence[Request]], list[RequestOutput]]


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """Options of beam search. An unknown keyword, or a value outside its range, raises InvalidRequest."""

    beam_width: int
    """Beams kept at each step, and sequences returned."""
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    """Scores do not depend on it. Above 0, one drawn token joins the likeliest ones of each beam."""
    length_penalty: float = 1.0
    """Scores are cumulative log-probabilities divided by length to this power."""
    include_stop_str_in_output: bool = False
    """True: `text` shows the end token."""

    def __new__(cls, **options: Any) -> BeamSearchParams:
        known = [spec.name for spec in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownOption.named(name, known, "BeamSearchParams")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        width, penalty = self.beam_width, self.length_penalty
        if type(width) is not int or not 1 <= width <= MAX_BEAM_WIDTH:
            raise InvalidRequest(f"beam_width must be a whole number from 1 to {MAX_BEAM_WIDTH}, got {width!r}.")
        if not isinstance(penalty, (int, float)) or not -10 <= penalty <= 10:
            raise InvalidRequest(f"length_penalty must be in [-10, 10], got {penalty!r}.")
        if self.max_tokens is None:
            raise InvalidRequest("max_tokens must be a whole number >= 1, got None.")
        self.prompt_sampling.with_(max_tokens=self.max_tokens)

    @property
    def prompt_sampling(self) -> SamplingParams:
        """Options with which a prompt is prepared."""
        return SamplingParams(temperature=self.temperature, max_tokens=1, ignore_eos=self.ignore_eos)


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam. Field names are vLLM's."""

    orig_prompt: Request = field(repr=False)
    tokens: list[int]
    """Token ids of prompt and answer."""
    logprobs: list[dict[int, Logprob]]
    cum_logprob: float = 0.0
    text: str | None = None
    """Text of all tokens, special ones too."""
    finish_reason: str | None = None
    """"stop" = an end token, "length" = max_tokens or the context is full."""
    stop_reason: int | str | None = None

    def grown(self, token_id: int, scores: dict[int, Logprob]) -> BeamSearchSequence:
        total = self.cum_logprob + scores[token_id].logprob
        return BeamSearchSequence(self.orig_prompt, [*self.tokens, token_id], [*self.logprobs, scores], total)


@dataclass(slots=True)
class BeamSearchOutput:
    """The best beams of one prompt, best first."""

    sequences: list[BeamSearchSequence]


@dataclass(slots=True)
class _Search:
    """The beams of one prompt."""

    beams: list[BeamSearchSequence]
    complete: list[BeamSearchSequence] = field(default_factory=list)


@dataclass(frozen=True)
class BeamSearch:
    """Beam search with one model."""

    params: BeamSearchParams
    tokenizer: Tokenizer
    end_ids: frozenset[int]
    max_length: int
    """Most tokens of prompt and answer together."""

    def run(self, prompts: Sequence[Request], ask: Ask, on_step: Callable[[int], None]) -> list[BeamSearchOutput]:
        """Advance all prompts together, a token a step."""
        searches = [_Search([BeamSearchSequence(prompt, list(prompt.prompt_ids), [])]) for prompt in prompts]
        for step in range(self.params.max_tokens):
            growing = [search for search in searches if search.beams and self._has_room(search)]
            if not growing:
                break
            requests = [request for search in growing for request in self._requests(search, step)]
            answers = iter(ask(requests))
            for search in growing:
                self._advance(search, [next(answers) for _ in search.beams])
            on_step(1)
        return [self._result(search) for search in searches]

    def score(self, beam: BeamSearchSequence) -> float:
        """Return a beam's score, higher is better. As in vLLM, its length is prompt and answer without an end token.

        transformers divides by the length of the answer alone.
        """
        length = len(beam.tokens) - (beam.tokens[-1] in self.end_ids)
        return float(beam.cum_logprob / max(length, 1) ** self.params.length_penalty)

    def _has_room(self, search: _Search) -> bool:
        return len(search.beams[0].tokens) < self.max_length

    def _requests(self, search: _Search, step: int) -> Iterator[Request]:
        sampling = self.params.prompt_sampling.with_(logprobs=2 * self.params.beam_width)
        for number, beam in enumerate(search.beams):
            prompt = beam.orig_prompt
            name = f"{prompt.id}-beam-{step}-{number}"
            yield prompt.with_(id=name, prompt_ids=tuple(beam.tokens), sampling=sampling)

    def _advance(self, search: _Search, answers: list[RequestOutput]) -> None:
        grown: list[BeamSearchSequence] = []
        for beam, answer in zip(search.beams, answers, strict=True):
            if answer.outputs[0].error is not None:
                raise answer.outputs[0].error
            for scores in answer.outputs[0].logprobs or ():
                grown += [beam.grown(token_id, scores) for token_id in scores]
        ended = [] if self.params.ignore_eos else [beam for beam in grown if beam.tokens[-1] in self.end_ids]
        for beam in ended:
            beam.finish_reason = "stop"
        search.complete += ended
        going_on = [beam for beam in grown if beam.finish_reason is None]
        search.beams = self._best(going_on)

    def _best(self, beams: list[BeamSearchSequence]) -> list[BeamSearchSequence]:
        return sorted(beams, key=self.score, reverse=True)[: self.params.beam_width]

    def _result(self, search: _Search) -> BeamSearchOutput:
        best = self._best([*search.complete, *search.beams])
        for beam in best:
            ends = beam.finish_reason == "stop"
            shown = beam.tokens[:-1] if ends and not self.params.include_stop_str_in_output else beam.tokens
            beam.text = self.tokenizer.decode(shown, skip_special_tokens=False)
            beam.finish_reason = beam.finish_reason or "length"
        return BeamSearchOutput(best)
