"""AnswerGroup: a caller's request, its `n` sequences in the engine, and the answers that come of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tilewise.engine.delta import TokenDelta
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.outputs.answer import Answer, named_scores
from tilewise.timing import EngineMoments, Timing
from tilewise.types import Logprob, Request, RequestOutput, Usage


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to one of the answers."""

    index: int
    text: str
    """New to the reader; often empty while characters or stop strings are incomplete."""
    token_id: int
    scores: dict[int, Logprob] | None
    finish_reason: str | None
    stop_reason: int | str | None
    engine_goes_on: bool
    """A stop string ended the answer, which the engine cannot see: it has to be told."""


class AnswerGroup:
    """Collects the tokens of all sequences of a request."""

    def __init__(self, tokenizer: Tokenizer, request: Request, spec: InputSpec) -> None:
        self.request = request
        self.requests = list(_fan_out(request))
        """What the engine is asked: one request a sequence."""
        self._answers = {
            single.id: Answer(tokenizer, single.sampling, index, spec.header)
            for index, single in enumerate(self.requests)
        }
        self._tokenizer = tokenizer
        self._tokens_per_tile = spec.tokens_per_tile
        self._moments: EngineMoments | None = None
        self._preemptions: dict[str, int] = {}
        self._last_token: float | None = None
        self._times: dict[str, float] = {}
        self._open = len(self._answers)
        self._tokens = 0
        self._tokens_saved = 0
        self._cached = 0
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None

    @property
    def finished(self) -> bool:
        return not self._open

    def last_time(self, request_id: str) -> float | None:
        """When the newest token of one of the sequences was known; None before its first."""
        return self._times.get(request_id)

    def take(self, delta: TokenDelta) -> Piece | None:
        """Take in a token; None if its answer has ended, by a stop string earlier in the same step."""
        answer = self._answers[delta.request_id]
        if answer.finished:
            return None
        text = answer.add(delta.token, delta.finish_reason, delta.stop_reason)
        self._open -= answer.finished
        self._tokens += 1
        self._tick(delta)
        output = answer.output
        return Piece(
            output.index,
            text,
            delta.token.token_id,
            output.logprobs[-1] if output.logprobs else None,
            output.finish_reason,
            output.stop_reason,
            engine_goes_on=answer.finished and delta.finish_reason is None,
        )

    def _tick(self, delta: TokenDelta) -> None:
        self._tokens_saved, self._cached = delta.image_tokens_saved, delta.cached_tokens
        if self.request.sampling.prompt_logprobs is not None and self._prompt_logprobs is None:
            scores = [named_scores(token, self._tokenizer) for token in delta.prompt_scores]
            self._prompt_logprobs = [None, *scores]
        self._last_token = self._times[delta.request_id] = delta.time
        self._moments = self._moments or delta.moments
        self._preemptions[delta.request_id] = delta.preemptions

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        request = self.request
        return Usage(
            prompt_tokens=len(request.prompt_ids) - self._tokens_saved,
            completion_tokens=self._tokens,
            image_tokens=request.num_tiles * self._tokens_per_tile - self._tokens_saved,
            tiles=request.num_tiles,
            image_tokens_saved=self._tokens_saved,
            cached_tokens=self._cached,
        )

    def output(self) -> RequestOutput:
        """The answers so far, or whole."""
        request, outputs = self.request, [answer.output for answer in self._answers.values()]
        return RequestOutput(
            request_id=request.id,
            prompt=request.prompt,
            prompt_token_ids=list(request.prompt_ids),
            outputs=outputs,
            finished=self.finished,
            num_cached_tokens=self._cached,
            prompt_logprobs=self._prompt_logprobs,
            usage=self.usage,
            timing=Timing(
                request.arrival,
                self._moments.first_token if self._moments else None,
                self._last_token if self.finished else None,
                request.inputs,
                self._moments,
                sum(self._preemptions.values()),
            ),
        )


def _fan_out(request: Request) -> Iterator[Request]:
    """One request a sequence; with a seed, each has a seed of its own."""
    sampling = request.sampling
    if sampling.n == 1:
        yield request
        return
    for index in range(sampling.n):
        seed = None if sampling.seed is None else sampling.seed + index
        yield request.with_(id=f"{request.id}-{index}", sampling=sampling.with_(n=1, seed=seed))
