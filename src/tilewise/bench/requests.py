"""A request of a benchmark: what is asked, how it is said to an OpenAI-compatible server, and what came of it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from tilewise.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or video of a request, as a URL: of its bytes, or of where it is."""

    kind: Literal["image", "video"]
    url: str

    @classmethod
    def of(cls, kind: Literal["image", "video"], content: bytes, mime: str) -> Media:
        return cls(kind, f"data:{mime};base64,{base64.b64encode(content).decode()}")

    @property
    def part(self) -> dict[str, Any]:
        """The part of a message that holds it."""
        return {"type": f"{self.kind}_url", f"{self.kind}_url": {"url": self.url}}


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One request: a conversation that the data set has whole (`messages`), or the `prompt` of a user."""

    prompt: str
    prompt_tokens: int | None
    """Tokens of the text; None where there is no tokenizer to count with."""
    output_tokens: int | None
    """Tokens of the answer that are wanted; None = as many as the model gives."""
    media: tuple[Media, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The request as messages of a chat: media stand behind the text, where vLLM places them."""
        if self.messages is not None:
            return list(self.messages)
        text = {"type": "text", "text": self.prompt}
        return [{"role": "user", "content": [text, *(item.part for item in self.media)]}]


@dataclass(frozen=True, slots=True)
class CommonFields:
    """The fields that all requests of a run have in common."""

    model: str
    ignore_eos: bool = False
    logprobs: int | None = None
    extra: tuple[tuple[str, Any], ...] = ()
    """Further fields of the body, sampling among them; they win over all others."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """A route of OpenAI's API: how a request is written for it, and what a chunk of its answer shows."""

    endpoint: str
    fields: Callable[[SampleRequest, CommonFields], dict[str, Any]]
    shown: Callable[[dict[str, Any]], str]
    """A function that returns what the choice in a chunk shows; empty where it shows nothing."""
    takes_media: bool = False

    def body(self, request: SampleRequest, asking: CommonFields) -> dict[str, Any]:
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


def _completion(request: SampleRequest, asking: CommonFields) -> dict[str, Any]:
    if request.messages is not None:
        raise InvalidConfig("The data set has conversations: choose --backend openai-chat.")
    return _known(prompt=request.prompt, max_tokens=request.output_tokens, logprobs=asking.logprobs)


def _chat(request: SampleRequest, asking: CommonFields) -> dict[str, Any]:
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
"""Name of --backend -> how it is spoken to."""


def tokens_of(usage: dict[str, Any]) -> TokenCounts:
    details = usage.get("prompt_tokens_details") or {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return TokenCounts(*counts, *(details.get(name) for name in ("image_tokens", "tiles", "cached_tokens")))


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The tokens and tiles of a request, as the server counts them in `usage`; None where it does not say."""

    prompt: int | None = None
    completion: int | None = None
    image: int | None = None
    tiles: int | None = None
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed request: `kind` is what failures are counted by, `text` is about this one."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The answer to one request, or its failure. Times are in seconds, those of chunks since the request was sent."""

    start: float
    """Moment of sending, from the beginning of the run on."""
    queued: float = 0.0
    """Time that it waited in this client before, for a place below the limit of concurrency."""
    first_chunk: float | None = None
    """Time to the first chunk of an answer, which may say no more than that there will be one. vLLM's TTFT."""
    contents: tuple[float, ...] = ()
    """Time to each chunk that brought text, reasoning or a piece of a tool call."""
    latency: float = 0.0
    """Time to the last chunk of an answer."""
    text: str = ""
    tokens: TokenCounts = TokenCounts()
    failure: Failure | None = None

    @property
    def first_content(self) -> float:
        """The time to first token. An answer in which there was nothing to see counts from its end."""
        return self.contents[0] if self.contents else self.latency

    @property
    def gaps(self) -> list[float]:
        """Times between chunks with content."""
        return [later - earlier for earlier, later in pairwise(self.contents)]

    def per_token(self, output_tokens: int) -> float | None:
        """Return the mean time of each token behind the first; None where there is none."""
        return (self.latency - self.first_content) / (output_tokens - 1) if output_tokens > 1 else None
