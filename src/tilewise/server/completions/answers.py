"""Answers to text completions, whole and as chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NotRequired, cast

from typing_extensions import TypedDict

from tilewise.outputs.group import AnswerDelta
from tilewise.server.answers import (
    ChunkInterval,
    CompletionChunk,
    Finish,
    PromptScores,
    Scores,
    StopReason,
    TextScores,
    UsageCounts,
    WholeCompletion,
    checked_reason,
    prompt_scores,
    text_scores,
    total_usage,
    usage_body,
)
from tilewise.server.completions.call import CompletionCall
from tilewise.types import CompletionOutput, Request, RequestOutput, Usage

Decode = Callable[[Sequence[int]], str]
"""A function from token ids to their text, in which special tokens stand by name."""


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: Finish
    stop_reason: StopReason
    token_ids: list[int] | None
    prompt_logprobs: PromptScores | None
    prompt_token_ids: list[int] | None


class TextCompletion(WholeCompletion):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class TextChunkChoice(TypedDict):
    index: int
    text: str
    logprobs: TextScores | None
    finish_reason: Finish | None
    stop_reason: NotRequired[StopReason]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class TextChunk(CompletionChunk):
    object: Literal["text_completion"]
    choices: list[TextChunkChoice]


def completion_body(call: CompletionCall, outputs: Sequence[RequestOutput], decode: Decode) -> TextCompletion:
    """Return the body with the answers to all prompts, in their order. Raises BrokenAnswer."""
    reply = call.reply
    return {
        "id": reply.id,
        "object": "text_completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [
            _choice(call, output, answer, number * call.sampling.n + answer.index, decode)
            for number, output in enumerate(outputs)
            for answer in output.outputs
        ],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": _usage(call, [output.usage for output in outputs]),
        "kv_transfer_params": None,
    }


def _usage(call: CompletionCall, usages: Sequence[Usage]) -> UsageCounts:
    """Return the usage of several prompts; the token behind a prompt that alone is answered does not count."""
    total = total_usage(usages)
    return usage_body(replace(total, completion_tokens=0) if call.prompt_only else total)


def _choice(
    call: CompletionCall, output: RequestOutput, answer: CompletionOutput, index: int, decode: Decode
) -> TextChoice:
    text, token_ids, scores = answer.text, list(answer.token_ids), answer.logprobs
    if call.prompt_only:
        text, token_ids, scores = "", [], scores and []
    if call.echo:
        text = _echoed(output.prompt, output.prompt_token_ids, decode) + text
    return {
        "index": index,
        "text": text,
        "logprobs": _scores(call, output, token_ids, scores, decode),
        "finish_reason": cast(Finish, _finish_reason(call, answer.finish_reason)),  # it is whole
        "stop_reason": None if call.prompt_only else answer.stop_reason,
        "token_ids": token_ids if call.reply.token_ids else None,
        "prompt_logprobs": prompt_scores(output.prompt_logprobs),
        "prompt_token_ids": output.prompt_token_ids if call.reply.token_ids else None,
    }


def _finish_reason(call: CompletionCall, reason: str | None) -> Finish | None:
    return "length" if call.prompt_only else checked_reason(reason)


def _echoed(prompt: str | None, prompt_ids: Sequence[int], decode: Decode) -> str:
    return decode(prompt_ids) if prompt is None else prompt


def _scores(
    call: CompletionCall, output: RequestOutput, token_ids: list[int], scores: list[Scores] | None, decode: Decode
) -> TextScores | None:
    top = call.sampling.scored_tokens
    if top is None or scores is None:
        return None
    if not call.echo:
        return text_scores(scores, token_ids, top, call.reply.tokens_as_ids)
    prompt = output.prompt_logprobs or []
    ids = [*output.prompt_token_ids, *token_ids]
    return text_scores([*prompt, *scores], ids, top, call.reply.tokens_as_ids, first=decode(ids[:1]))


@dataclass
class _CompletionChoice:
    """One answer of a stream: how far its text has come, and what its tokens brought since its last chunk."""

    interval: ChunkInterval
    offset: int = 0
    begun: bool = False
    held: str = ""
    echoed_ids: Sequence[int] = ()
    echoed_scores: Sequence[Scores | None] = ()
    """Tokens of an echoed prompt, and their log-probabilities, until they are in a chunk."""
    token_ids: list[int] = field(default_factory=list)
    scores: list[Scores | None] = field(default_factory=list)


class CompletionStream:
    """The chunks of the answers to several prompts, as they come; an echoed prompt stands before an answer's text."""

    def __init__(self, call: CompletionCall, requests: Sequence[Request], decode: Decode, interval: int = 1) -> None:
        self._call = call
        self._requests = requests
        self._decode = decode
        self._tokens = [0] * len(requests)
        self._choices = [_CompletionChoice(ChunkInterval(interval)) for _ in range(len(requests) * call.sampling.n)]

    def take(
        self, prompt: int, piece: AnswerDelta, usage: Usage, prompt_logprobs: Sequence[Scores | None] | None = None
    ) -> list[TextChunk]:
        """Return the chunks of a piece of an answer to prompt number `prompt`, whose tokens `usage` counts.

        Each chunk counts the tokens taken up to it, as `usage` may be ahead, where a step brought several. An echoed
        prompt stands in the first chunk, with its log-probabilities. Raises BrokenAnswer.
        """
        self._tokens[prompt] += 1
        index = prompt * self._call.sampling.n + piece.index
        choice, request, only = self._choices[index], self._requests[prompt], self._call.prompt_only
        if not only:
            choice.token_ids.append(piece.token_id)
            choice.scores += [piece.scores] if piece.scores is not None else []
        choice.held += "" if only else piece.text
        ended = piece.finish_reason is not None
        text = choice.held
        if self._call.echo and not choice.begun:
            text = _echoed(request.prompt, request.prompt_ids, self._decode) + text
            choice.echoed_ids, choice.echoed_scores = request.prompt_ids, prompt_logprobs or ()
        if not (choice.interval.is_due(ended) and (text or ended)):
            return []
        choice.held = ""
        body = self._choice(index, text)
        if piece.finish_reason is not None:
            body["finish_reason"] = _finish_reason(self._call, piece.finish_reason)
            body["stop_reason"] = None if only else piece.stop_reason
        if self._call.reply.token_ids and not choice.begun:
            body["prompt_token_ids"] = list(request.prompt_ids)
        choice.begun = True
        counted = [replace(usage, completion_tokens=self._tokens[prompt])]
        return [self._chunk([body], counted if self._call.reply.continuous_usage else ())]

    def finish(self, usages: Sequence[Usage]) -> list[TextChunk]:
        """Return the chunk behind all answers: the usage of all prompts, if it is wanted."""
        return [self._chunk([], usages)] if self._call.reply.include_usage else []

    def _choice(self, index: int, text: str) -> TextChunkChoice:
        choice, reply, top = self._choices[index], self._call.reply, self._call.sampling.scored_tokens
        body: TextChunkChoice = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        if (choice.scores or choice.echoed_scores) and top is not None:
            found = self._scored(choice, top)
            choice.offset = found["text_offset"][-1] + len(found["tokens"][-1])
            body["logprobs"] = found
        if reply.token_ids:
            body["token_ids"] = list(choice.token_ids)
        choice.token_ids.clear()
        choice.scores.clear()
        return body

    def _scored(self, choice: _CompletionChoice, top: int) -> TextScores:
        """Return the log-probabilities of the tokens since the last chunk, those of an echoed prompt first."""
        as_ids = self._call.reply.tokens_as_ids
        if not choice.echoed_scores:
            return text_scores(choice.scores, choice.token_ids, top, as_ids, offset=choice.offset)
        ids, scores = [*choice.echoed_ids, *choice.token_ids], [*choice.echoed_scores, *choice.scores]
        choice.echoed_ids = choice.echoed_scores = ()
        return text_scores(scores, ids, top, as_ids, first=self._decode(ids[:1]))

    def _chunk(self, choices: list[TextChunkChoice], usages: Sequence[Usage]) -> TextChunk:
        reply = self._call.reply
        chunk: TextChunk = {
            "id": reply.id,
            "object": "text_completion",
            "created": reply.created,
            "model": reply.model,
            "choices": choices,
        }
        if usages:
            chunk["usage"] = _usage(self._call, usages)
        return chunk
