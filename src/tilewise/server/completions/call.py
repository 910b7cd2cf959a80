"""Bodies of text completions are read into a CompletionCall, which becomes a request to the engine for each prompt."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.context import Side
from tilewise.inputs.prepare import Preparer
from tilewise.server.bodies import CompletionBody
from tilewise.server.body import UnknownFields
from tilewise.server.chat.call import max_tokens_of
from tilewise.server.generation import (
    LIGHT,
    GenerationCall,
    check_routing,
    form_field,
    naming_form,
    reply_of,
    sampling_of,
)
from tilewise.server.request_id import RequestId
from tilewise.server.served import ServedModel
from tilewise.types import Request

MAX_PROMPTS = 1024
_DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class CompletionCall(GenerationCall):
    """A call for text completions: several prompts, each with `sampling.n` answers."""

    prompts: tuple[str | tuple[int, ...], ...]
    start: bool = True
    """True if a text gets the tokenizer's start token."""
    keep_last: int | None = None
    cut: Side = "left"
    echo: bool = False
    prompt_only: bool = False
    """True for `max_tokens: 0`: only the prompt is answered, though the engine generates one token all the same."""

    @property
    def is_light(self) -> bool:
        """True if it is so little work that it may be done on the event loop: short prompts and no form."""
        return self.sampling.structured_outputs is None and sum(map(len, self.prompts)) <= LIGHT

    def requests(self, preparer: Preparer) -> list[Request]:
        """Return one engine request for each prompt."""
        arrival = time.monotonic()
        with naming_form(self.form_field):
            requests = [
                preparer.prompt(prompt, (), self.sampling, start=self.start, keep_last=self.keep_last, cut=self.cut)
                for prompt in self.prompts
            ]
        return [self.routed(request.with_(arrival=arrival), preparer) for request in requests]


def completion_call(
    body: dict[str, Any], served: ServedModel, ignored: Ignored, name: RequestId | None = None
) -> CompletionCall:
    """Read a body of /v1/completions; names without effect go into `ignored`.

    Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
    fields = CompletionBody.read(body, UnknownFields(ignored, served.config.strict_fields))
    most = max_tokens_of(fields, ignored)
    prompt_only = fields.echo and most == 0
    if prompt_only and fields.logprob_token_ids:
        raise InvalidField("logprob_token_ids", "no output tokens are generated: leave it out, or raise max_tokens.")
    wanted = 1 if prompt_only else most
    default = served.sampling.get("max_tokens", _DEFAULT_MAX_TOKENS)
    prompts = _prompts(fields.prompt)
    sampling = sampling_of(fields, served, max_tokens=default if wanted is None else wanted, logprobs=fields.logprobs)
    if fields.echo and fields.logprobs is not None and sampling.prompt_logprobs is None:
        sampling = sampling.with_(prompt_logprobs=fields.logprobs)
    _check_answers(len(prompts), sampling.n, max(MAX_PROMPTS, served.max_answers))
    check_routing(fields, served)
    return CompletionCall(
        reply=reply_of(fields, served, "cmpl-", name or RequestId.of()),
        prompts=prompts,
        sampling=sampling,
        priority=fields.priority,
        cache_salt=fields.cache_salt,
        max_tokens=wanted,
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


def _prompts(prompt: str | list[int] | list[str | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    items: list[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt)
    if not items or any(not item for item in items):
        raise InvalidField("prompt", "prompt is empty: it needs at least one token.")
    if len(items) > MAX_PROMPTS:
        raise InvalidField("prompt", f"prompt is a list of {len(items)}, the most are {MAX_PROMPTS}: send fewer.")
    return tuple(item if isinstance(item, str) else tuple(item) for item in items)
