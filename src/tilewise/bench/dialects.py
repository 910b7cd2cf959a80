"""Dialects: how a request is said to an OpenAI-compatible server, and what its chunks bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilewise.bench.answers import Tokens
from tilewise.bench.samples import SampleRequest
from tilewise.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Asking:
    """What all requests of a run have in common."""

    model: str
    ignore_eos: bool = False
    logprobs: int | None = None
    extra: tuple[tuple[str, Any], ...] = ()
    """Further fields, sampling among them; they win."""


@dataclass(frozen=True, slots=True)
class Dialect:
    endpoint: str
    fields: Callable[[SampleRequest, Asking], dict[str, Any]]
    shown: Callable[[dict[str, Any]], str]
    """What a choice of a chunk shows; empty where it shows nothing."""
    takes_media: bool = False

    def body(self, request: SampleRequest, asking: Asking) -> dict[str, Any]:
        if request.media and not self.takes_media:
            raise InvalidConfig("Pictures need a conversation: choose --backend openai-chat.")
        return {
            "model": asking.model,
            **self.fields(request, asking),
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if asking.ignore_eos else {}),
            **dict(asking.extra),
        }


def _completion(request: SampleRequest, asking: Asking) -> dict[str, Any]:
    if request.messages is not None:
        raise InvalidConfig("The data set has conversations: choose --backend openai-chat.")
    return _known(prompt=request.prompt, max_tokens=request.output_tokens, logprobs=asking.logprobs)


def _chat(request: SampleRequest, asking: Asking) -> dict[str, Any]:
    scores = {} if asking.logprobs is None else {"logprobs": True, "top_logprobs": asking.logprobs}
    return _known(messages=request.conversation, max_completion_tokens=request.output_tokens, **scores)


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _completion_text(choice: dict[str, Any]) -> str:
    return choice.get("text") or ""


def _chat_text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta") or {}
    calls = [call.get("function") or {} for call in delta.get("tool_calls") or ()]
    called = "".join((call.get("name") or "") + (call.get("arguments") or "") for call in calls)
    return (delta.get("reasoning") or delta.get("reasoning_content") or "") + (delta.get("content") or "") + called


COMPLETIONS = Dialect("/v1/completions", _completion, _completion_text)
CHAT = Dialect("/v1/chat/completions", _chat, _chat_text, takes_media=True)
DIALECTS = {"openai": COMPLETIONS, "vllm": COMPLETIONS, "openai-chat": CHAT}
"""By the names of --backend."""


def tokens_of(usage: dict[str, Any]) -> Tokens:
    details = usage.get("prompt_tokens_details") or {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return Tokens(*counts, *(details.get(name) for name in ("image_tokens", "tiles", "cached_tokens")))
