"""A request of a benchmark: what is asked, how it is said to an OpenAI-compatible server, and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from tilewise.chat_server import data_url, error_text
from tilewise.errors import InvalidConfig
from tilewise.sse import EventReader

MediaKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or video of a request, as a URL: of its bytes, or of where it is."""

    kind: MediaKind
    url: str

    @classmethod
    def of(cls, kind: MediaKind, content: bytes, mime: str) -> Media:
        return cls(kind, data_url(mime, content))

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
    """The server's name of the model; empty = its first, which is asked for before a run."""
    ignore_eos: bool = False
    logprobs: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
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
            **asking.extra,
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


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The tokens and tiles of a request, as the server counts them in `usage`; None where it does not say."""

    prompt: int | None = None
    completion: int | None = None
    image: int | None = None
    tiles: int | None = None
    cached: int | None = None

    @classmethod
    def of(cls, usage: dict[str, Any]) -> TokenCounts:
        details = usage.get("prompt_tokens_details") or {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        return cls(*counts, *(details.get(name) for name in ("image_tokens", "tiles", "cached_tokens")))


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed request: `kind` is what failures are counted by, `text` is about this one."""

    kind: str
    text: str
    after: float = 0.0
    """Seconds from sending the request until it had failed; 0 if it was not sent."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


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

    @property
    def ended(self) -> float:
        """The moment at which the request was in flight no more, from the beginning of the run on."""
        return self.start + (self.failure.after if self.failure else self.latency)

    @property
    def output_tokens(self) -> int:
        return self.tokens.completion or 0

    @property
    def per_token(self) -> float | None:
        """The mean time of each token behind the first; None where there is none."""
        behind = self.output_tokens - 1
        return (self.latency - self.first_content) / behind if behind > 0 else None


class AnswerCollector:
    """A collector of what comes of one answer, chunk by chunk; it becomes a RequestOutcome."""

    def __init__(self, sent: float, start: float, queued: float, dialect: Dialect) -> None:
        self._sent, self._start, self._queued, self._dialect = sent, start, queued, dialect
        self._events = EventReader()
        self._first: float | None = None
        self._latency = 0.0
        self._contents: list[float] = []
        self._texts: list[str] = []
        self._tokens = TokenCounts()
        self._failure: tuple[str, str] | None = None
        self._whole = False

    def feed(self, chunk: bytes) -> None:
        """Take bytes of the stream, which have come just now."""
        moment = time.perf_counter() - self._sent
        for data in self._events.feed(chunk):
            if data == "[DONE]":
                self._whole = True
            else:
                self._take(json.loads(data), moment)

    def _take(self, event: dict[str, Any], moment: float) -> None:
        if event.get("error"):
            self._failure = ("error in the stream", message_of(json.dumps(event).encode()))
        if event.get("usage"):
            self._tokens = TokenCounts.of(event["usage"])
        for choice in (event.get("choices") or ())[:1]:
            self._latency = moment
            self._first = moment if self._first is None else self._first
            if text := self._dialect.shown(choice):
                self._contents.append(moment)
                self._texts.append(text)

    def answer(self) -> RequestOutcome:
        """Return the outcome of a stream that has ended. One without `[DONE]`, or without an answer, has failed."""
        if self._failure or (self._whole and self._first is not None):
            return self._outcome(self._failure)
        return self._outcome(("ended early", "the stream ended before the answer did"))

    def failed(self, kind: str, text: str) -> RequestOutcome:
        return self._outcome(self._failure or (kind, text[:_LONGEST]))

    def _outcome(self, failed: tuple[str, str] | None) -> RequestOutcome:
        failure = Failure(*failed, time.perf_counter() - self._sent) if failed else None
        seen = (self._first, tuple(self._contents), self._latency, "".join(self._texts), self._tokens)
        return RequestOutcome(self._start, self._queued, *seen, failure)


_LONGEST = 300  # characters of a server's words that are kept


def message_of(body: bytes) -> str:
    """Return the message of an error's body, else the beginning of the text."""
    text = body.decode("utf-8", "replace")
    return (error_text(text) or " ".join(text.split()))[:_LONGEST]
