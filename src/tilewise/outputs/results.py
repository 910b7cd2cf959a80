"""ResultStream: the results that a caller of AsyncLLM is given while an answer grows."""

from __future__ import annotations

from dataclasses import replace

from tilewise.outputs.group import AnswerGroup
from tilewise.sampling_params import RequestOutputKind
from tilewise.types import CompletionOutput, RequestOutput


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
