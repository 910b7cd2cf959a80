"""Text completions: a body to its CompletionCall, and whole answers to a body."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.server.calls import CompletionCall
from tilewise.server.convert import name_older_max_tokens, reply_of, routing_of
from tilewise.server.fields import COMPLETION, UnknownFields
from tilewise.server.protocol.completion import CompletionBody
from tilewise.server.respond import checked_reason, usage_body
from tilewise.server.sampling import form_field, sampling_of
from tilewise.server.scores import Scores, prompt_scores, text_logprobs
from tilewise.server.served import ServedModel
from tilewise.types import CompletionOutput, RequestOutput, Usage

MAX_PROMPTS = 1024
DEFAULT_MAX_TOKENS = 16
Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens by name."""


def completion_call(
    body: dict[str, Any], served: ServedModel, ignored: Ignored, header_id: str | None = None
) -> CompletionCall:
    """Names without effect go into `ignored`. Raises InvalidRequest, UnknownModel or pydantic's ValidationError."""
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
    """Answers of all prompts, in their order. Raises BrokenAnswer for a structured answer that broke."""
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
    """Of all prompts together; the token behind a prompt that alone is answered does not count."""
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
