"""Text completions: a body is read into a CompletionCall, and answers are written as a body or as chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.outputs.group import AnswerDelta
from tilewise.server.calls import CompletionCall
from tilewise.server.chat_answers import checked_reason, usage_body
from tilewise.server.convert import name_older_max_tokens, reply_of, routing_of
from tilewise.server.fields.field import UnknownFields
from tilewise.server.fields.tables import COMPLETION
from tilewise.server.protocol.bodies import CompletionBody
from tilewise.server.sampling import form_field, sampling_of
from tilewise.server.scores import Scores, prompt_scores, text_logprobs
from tilewise.server.served import ServedModel
from tilewise.types import CompletionOutput, Request, RequestOutput, Usage

MAX_PROMPTS = 1024
DEFAULT_MAX_TOKENS = 16
Decode = Callable[[Sequence[int]], str]
"""A function from token ids to their text, in which special tokens stand by name."""


def completion_call(
    body: dict[str, Any], served: ServedModel, ignored: Ignored, header_id: str | None = None
) -> CompletionCall:
    """Read a body of /v1/completions; names without effect go into `ignored`.

    Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
    fields = CompletionBody.read(body, COMPLETION, UnknownFields(ignored, served.strict_fields))
    most = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    name_older_max_tokens(fields, ignored)
    prompt_only = fields.echo and most == 0
    scored_prompt = fields.echo and fields.logprobs is not None
    if scored_prompt and fields.stream:
        raise InvalidField("echo", "echo with logprobs is not streamed: leave out one of echo, logprobs and stream.")
    if prompt_only and fields.logprob_token_ids:
        raise InvalidField("logprob_token_ids", "no output tokens are generated: leave it out, or raise max_tokens.")
    if scored_prompt and fields.prompt_logprobs is None:
        fields = fields.model_copy(update={"prompt_logprobs": fields.logprobs})
    wanted = 1 if prompt_only else most
    default = served.sampling.get("max_tokens", DEFAULT_MAX_TOKENS)
    prompts = _prompts(fields.prompt)
    sampling = sampling_of(fields, served, max_tokens=default if wanted is None else wanted, logprobs=fields.logprobs)
    _check_answers(len(prompts), sampling.n, max(MAX_PROMPTS, served.max_answers))
    return CompletionCall(
        reply=reply_of(fields, served, "cmpl-", header_id),
        prompts=prompts,
        sampling=sampling,
        routing=routing_of(fields.priority, fields.cache_salt, wanted, served),
        form_field=form_field(fields),
        start=fields.add_special_tokens,
        keep_last=fields.truncate_prompt_tokens,
        cut=fields.truncation_side or "left",
        echo=fields.echo,
        prompt_only=prompt_only,
    )


def _check_answers(prompts: int, n: int, most: int) -> None:
    if prompts * n > most:
        raise InvalidField(
            "n", f"{prompts} prompts with n={n} make {prompts * n} answers, the most are {most}: send fewer at once."
        )


def completion_body(call: CompletionCall, outputs: Sequence[RequestOutput], decode: Decode) -> dict[str, Any]:
    """Return the body with the answers to all prompts, in their order. Raises BrokenAnswer, as `chat_body` does."""
    reply = call.reply
    choices = [
        _choice(call, output, answer, number * call.sampling.n + answer.index, decode)
        for number, output in enumerate(outputs)
        for answer in output.outputs
    ]
    return {
        "id": reply.id,
        "object": "text_completion",
        "created": reply.created,
        "model": reply.model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": None,
        "usage": usage_body(total_usage(call, [output.usage for output in outputs])),
        "kv_transfer_params": None,
    }


def total_usage(call: CompletionCall, usages: Iterable[Usage]) -> Usage:
    """Return the usage of all prompts together; the token behind a prompt that alone is answered does not count."""
    found = list(usages)
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in found),
        completion_tokens=0 if call.prompt_only else sum(usage.completion_tokens for usage in found),
        image_tokens=sum(usage.image_tokens for usage in found),
        tiles=sum(usage.tiles for usage in found),
        image_tokens_saved=sum(usage.image_tokens_saved for usage in found),
        cached_tokens=sum(usage.cached_tokens for usage in found),
    )


def _prompts(prompt: str | list[int] | list[str | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    items: list[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt)
    if not items or any(not item for item in items):
        raise InvalidField("prompt", "prompt is empty: it needs at least one token.")
    if len(items) > MAX_PROMPTS:
        raise InvalidField("prompt", f"prompt is a list of {len(items)}, the most are {MAX_PROMPTS}: send fewer.")
    return tuple(item if isinstance(item, str) else tuple(item) for item in items)


def _choice(
    call: CompletionCall, output: RequestOutput, answer: CompletionOutput, index: int, decode: Decode
) -> dict[str, Any]:
    text, token_ids, scores = answer.text, list(answer.token_ids), answer.logprobs
    if call.prompt_only:
        text, token_ids, scores = "", [], scores and []
    if call.echo:
        text = echoed(output.prompt, output.prompt_token_ids, decode) + text
    return {
        "index": index,
        "text": text,
        "logprobs": _logprobs(call, output, token_ids, scores, decode),
        "finish_reason": "length" if call.prompt_only else checked_reason(answer.finish_reason),
        "stop_reason": None if call.prompt_only else answer.stop_reason,
        "token_ids": token_ids if call.reply.token_ids else None,
        "prompt_logprobs": prompt_scores(output.prompt_logprobs),
        "prompt_token_ids": output.prompt_token_ids if call.reply.token_ids else None,
    }


def echoed(prompt: str | None, prompt_ids: Sequence[int], decode: Decode) -> str:
    return decode(prompt_ids) if prompt is None else prompt


def _logprobs(
    call: CompletionCall, output: RequestOutput, token_ids: list[int], scores: list[Scores] | None, decode: Decode
) -> dict[str, Any] | None:
    top = call.sampling.scored_tokens
    if top is None or scores is None:
        return None
    if not call.echo:
        return text_logprobs(scores, token_ids, top, call.reply.tokens_as_ids)
    prompt = output.prompt_logprobs or []
    ids = [*output.prompt_token_ids, *token_ids]
    return text_logprobs([*prompt, *scores], ids, top, call.reply.tokens_as_ids, first=decode(ids[:1]))


@dataclass
class _CompletionChoice:
    """One answer of a stream: how far its text has come, and what its tokens brought since its last chunk."""

    offset: int = 0
    begun: bool = False
    token_ids: list[int] = field(default_factory=list)
    scores: list[Scores | None] = field(default_factory=list)


class CompletionStream:
    """The chunks of the answers to several prompts, as they come; an echoed prompt stands before an answer's text."""

    def __init__(self, call: CompletionCall, requests: Sequence[Request], decode: Decode) -> None:
        self._call = call
        self._requests = requests
        self._decode = decode
        self._tokens = [0] * len(requests)
        self._choices = [_CompletionChoice() for _ in range(len(requests) * call.sampling.n)]

    def take(self, prompt: int, piece: AnswerDelta, usage: Usage) -> list[dict[str, Any]]:
        """Return the chunks of a piece of an answer to prompt number `prompt`, whose tokens `usage` counts.

        Each chunk counts the tokens taken up to it, as `usage` may be ahead, where a step brought several. Raises
        BrokenAnswer, as `chat_body` does.
        """
        self._tokens[prompt] += 1
        usage = replace(usage, completion_tokens=self._tokens[prompt])
        index = prompt * self._call.sampling.n + piece.index
        choice, only = self._choices[index], self._call.prompt_only
        if not only:
            choice.token_ids.append(piece.token_id)
            choice.scores += [piece.scores] if piece.scores is not None else []
        text = "" if only else piece.text
        if self._call.echo and not choice.begun:
            text = echoed(self._requests[prompt].prompt, self._requests[prompt].prompt_ids, self._decode) + text
        if not text and piece.finish_reason is None:
            return []
        body: dict[str, Any] = {"index": index, "text": text, **self._of_tokens(choice), "finish_reason": None}
        if piece.finish_reason is not None:
            body["finish_reason"] = "length" if only else checked_reason(piece.finish_reason)
            body["stop_reason"] = None if only else piece.stop_reason
        if self._call.reply.token_ids and not choice.begun:
            body["prompt_token_ids"] = list(self._requests[prompt].prompt_ids)
        choice.begun = True
        return [self._chunk([body], usage if self._call.reply.continuous_usage else None)]

    def finish(self, usages: Sequence[Usage]) -> list[dict[str, Any]]:
        """Return the chunk behind all answers: the usage of all prompts, if it is wanted."""
        return [self._chunk([], *usages)] if self._call.reply.include_usage else []

    def _of_tokens(self, choice: _CompletionChoice) -> dict[str, Any]:
        reply, top = self._call.reply, self._call.sampling.scored_tokens
        found: dict[str, Any] = {"logprobs": None}
        if choice.scores and top is not None:
            found["logprobs"] = text_logprobs(
                choice.scores, choice.token_ids, top, reply.tokens_as_ids, offset=choice.offset
            )
            choice.offset = found["logprobs"]["text_offset"][-1] + len(found["logprobs"]["tokens"][-1])
        if reply.token_ids:
            found["token_ids"] = list(choice.token_ids)
        choice.token_ids.clear()
        choice.scores.clear()
        return found

    def _chunk(self, choices: list[dict[str, Any]], *usages: Usage | None) -> dict[str, Any]:
        reply = self._call.reply
        chunk: dict[str, Any] = {
            "id": reply.id,
            "object": "text_completion",
            "created": reply.created,
            "model": reply.model,
            "choices": choices,
        }
        counted = [usage for usage in usages if usage is not None]
        if counted:
            chunk["usage"] = usage_body(total_usage(self._call, counted))
        return chunk
