"""AnswerGroup: a caller's request, its `n` sequences in the engine, and the texts that come of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tilewise.inputs.spec import HeaderIds, InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.outputs.tools import partial_tag
from tilewise.sampling_params import RequestOutputKind, SamplingParams
from tilewise.timing import EngineMoments, Timing
from tilewise.types import (
    CompletionOutput,
    Logprob,
    PictureReport,
    Request,
    RequestOutput,
    SampledToken,
    SequenceFailure,
    TokenDelta,
    Usage,
)


class Detokenizer:
    """The text of one sequence, built up token by token.

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
        """Take in a token and return the text that is new to the reader; a stop string in it may end the answer."""
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
        """True for special tokens, and for all tokens of a message's header, which are followed from call to call."""
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
        """Return U+FFFD, at the length limit, for bytes that wait for the rest of their character."""
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
        stops = self._sampling.stop_strings
        keep = 0 if self.finished else max((partial_tag(self._held, stop) for stop in stops), default=0)
        ready = self._held[: len(self._held) - keep]
        self._held = self._held[len(ready) :]
        self.output.text += ready
        return ready


def named_scores(token: SampledToken, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """Return the scores of a token and of its alternatives as results show them, the token first, as in vLLM.

    It has to have a log-probability.
    """
    assert token.logprob is not None
    assert token.rank is not None
    ranks = token.top_ranks or range(1, len(token.top) + 1)
    top = ((token_id, (value, rank)) for (token_id, value), rank in zip(token.top, ranks, strict=True))
    own = {token.token_id: (token.logprob, token.rank)}
    # The first `own` puts the token in front; the last keeps its own rank, which `top` may give to an equal.
    scores = {**own, **dict(top), **own}
    return {i: Logprob(value, rank, tokenizer.decode([i], False)) for i, (value, rank) in scores.items()}


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """The change that one token made to one of the answers."""

    index: int
    text: str
    """Text that is new to the reader; often empty while characters or stop strings are incomplete."""
    token_id: int
    scores: dict[int, Logprob] | None
    finish_reason: str | None
    stop_reason: int | str | None
    engine_goes_on: bool
    """True if a stop string ended the answer, which the engine cannot see: it has to be told."""


class AnswerGroup:
    """The sequences of a request: takes in their tokens, gives out answers and counts."""

    def __init__(self, tokenizer: Tokenizer, request: Request, spec: InputSpec) -> None:
        self.request = request
        self.requests = list(_fan_out(request))
        """Requests for the engine, one for each sequence."""
        self._answers = {
            single.id: Detokenizer(tokenizer, single.sampling, index, spec.header)
            for index, single in enumerate(self.requests)
        }
        self._tokenizer = tokenizer
        self._tokens_per_tile = spec.tokens_per_tile
        self._moments: EngineMoments | None = None
        self._encoded: frozenset[int] = frozenset()
        self._preemptions: dict[str, int] = {}
        self._last_token: float | None = None
        self._times: dict[str, float] = {}
        self._open = len(self._answers)
        self._tokens = 0
        self._tokens_saved = 0
        self._cached = 0
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        """Log-probabilities of the prompt's tokens, with the first token of an answer; None without, or before."""

    @property
    def finished(self) -> bool:
        return not self._open

    def last_time(self, request_id: str) -> float | None:
        """Return when the newest token of one of the sequences was known; None before its first."""
        return self._times.get(request_id)

    def take(self, delta: TokenDelta) -> AnswerDelta | None:
        """Take in a token; return None if its answer has ended, by a stop string earlier in the same step."""
        answer = self._answers[delta.request_id]
        if answer.finished:
            return None
        text = answer.add(delta.token, delta.finish_reason, delta.stop_reason)
        self._open -= answer.finished
        self._tokens += 1
        self._tick(delta)
        output = answer.output
        return AnswerDelta(
            output.index,
            text,
            delta.token.token_id,
            output.logprobs[-1] if output.logprobs else None,
            output.finish_reason,
            output.stop_reason,
            engine_goes_on=answer.finished and delta.finish_reason is None,
        )

    def fail(self, failure: SequenceFailure) -> None:
        """End an answer whose numbers were not finite; what came of it so far stays."""
        output = self._answers[failure.request_id].output
        if output.finish_reason is None:
            output.finish_reason, output.error = failure.finish_reason, failure.error
            self._open -= 1

    def _tick(self, delta: TokenDelta) -> None:
        self._tokens_saved, self._cached = delta.image_tokens_saved, delta.cached_tokens
        if self.request.sampling.prompt_logprobs is not None and self.prompt_logprobs is None:
            scores = [named_scores(token, self._tokenizer) for token in delta.prompt_scores]
            self.prompt_logprobs = [None, *scores]
        self._last_token = self._times[delta.request_id] = delta.time
        if self._moments is None and delta.moments is not None:
            self._moments, self._encoded = delta.moments, frozenset(delta.encoded_tiles)
        self._preemptions[delta.request_id] = delta.preemptions

    @property
    def usage(self) -> Usage:
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
        """Return the answers so far; they are whole once `finished`."""
        request, outputs = self.request, [answer.output for answer in self._answers.values()]
        return RequestOutput(
            request_id=request.id,
            prompt=request.prompt,
            prompt_token_ids=list(request.prompt_ids),
            outputs=outputs,
            finished=self.finished,
            num_cached_tokens=self._cached,
            prompt_logprobs=self.prompt_logprobs,
            pictures=tuple(self._pictures()) if self._moments else (),
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

    def _pictures(self) -> Iterator[PictureReport]:
        first = 0
        for image in self.request.images:
            numbers = range(first, first + len(image.tiles))
            encoded = tuple(number in self._encoded for number in numbers)
            yield PictureReport(image.original_size, image.grid, encoded)
            first = numbers.stop


def _fan_out(request: Request) -> Iterator[Request]:
    """Yield one request for each sequence; with a seed, each has a seed of its own."""
    sampling = request.sampling
    if sampling.n == 1:
        yield request
        return
    for index in range(sampling.n):
        seed = None if sampling.seed is None else sampling.seed + index
        yield request.with_(id=f"{request.id}-{index}", sampling=sampling.with_(n=1, seed=seed))


class ResultStream:
    """The results of a request, asked for after each step; its `output_kind` and `stream_interval` say what comes."""

    def __init__(self, group: AnswerGroup, request_id: str) -> None:
        sampling = group.request.sampling
        self._group = group
        self._request_id = request_id
        self._kind = sampling.output_kind
        self._interval = sampling.stream_interval or 1
        self._given = 0
        """Number of tokens, of all answers together, that were given out."""
        self._seen: dict[int, CompletionOutput] = {}
        """Answers by their index, as they were given out last."""

    def next(self) -> RequestOutput | None:
        """Return the next result; None while there is too little that is new."""
        tokens = self._group.usage.completion_tokens
        finished = self._group.finished
        if self._kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        if not finished and self._given and tokens - self._given < self._interval:
            return None
        self._given = tokens
        return self._result(finished)

    def aborted(self) -> RequestOutput:
        """Return the last result of a request that its caller ended."""
        result = self._result(finished=True)
        for answer in result.outputs:
            answer.finish_reason = answer.finish_reason or "abort"
        return result

    def _result(self, finished: bool) -> RequestOutput:
        output = self._group.output()
        answers = [_copied(answer) for answer in output.outputs]
        if self._kind is RequestOutputKind.DELTA:
            fresh = [(answer, self._seen.get(answer.index)) for answer in answers]
            self._seen = {answer.index: answer for answer in answers}
            answers = [_behind(answer, last) for answer, last in fresh if not _same(answer, last)]
        return replace(output, request_id=self._request_id, outputs=answers, finished=finished)


def _copied(answer: CompletionOutput) -> CompletionOutput:
    """Return a copy of the answer as it is now: the original grows."""
    scores = None if answer.logprobs is None else list(answer.logprobs)
    return replace(answer, token_ids=list(answer.token_ids), logprobs=scores)


def _same(answer: CompletionOutput, last: CompletionOutput | None) -> bool:
    before = (0, None) if last is None else (len(last.token_ids), last.finish_reason)
    return (len(answer.token_ids), answer.finish_reason) == before


def _behind(answer: CompletionOutput, last: CompletionOutput | None) -> CompletionOutput:
    """Return what is new in an answer since `last`; `cumulative_logprob` stays that of all of it."""
    if last is None:
        return answer
    tokens = len(last.token_ids)
    scores = None if answer.logprobs is None else answer.logprobs[tokens:]
    return replace(answer, text=answer.text[len(last.text) :], token_ids=answer.token_ids[tokens:], logprobs=scores)
