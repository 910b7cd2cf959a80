"""ChatServer: an OpenAI-compatible server, as a conversation sees it."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tilewise.errors import InvalidConfig, TilewiseError
from tilewise.host import DEFAULT_URL, is_here
from tilewise.sse import read_events

_CONNECT = 5.0  # seconds; an answer itself may take as long as it likes
_LONGEST = 800  # characters of an error that are shown


class ServerProblem(TilewiseError):
    """The server cannot be reached, or refuses a request."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The part of an answer that one event of the stream adds."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    explanation: dict[str, Any] | None = None
    """A Tilewise server's account of how it made the answer, where it was asked to `explain`."""


class ChatServer:
    """A client of one server. Use it as a context manager, which closes its connections."""

    def __init__(self, url: str, key: str | None, patience: float | None = None) -> None:
        """Know a server by its URL. With `patience`, it is not waited for longer than that, in seconds."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidConfig(f"--url must be an http(s) URL, such as {DEFAULT_URL}, got {url!r}.")
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            headers=key_headers(key), timeout=httpx.Timeout(patience, connect=_CONNECT), trust_env=not is_here(url)
        )

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models, as it describes them. Raises ServerProblem."""
        with self._readable_errors():
            answer = self._client.get(f"{self.url}/models", timeout=_CONNECT)
        if answer.status_code == 404:
            raise ServerProblem(f"{self.url} has no list of models: such a URL mostly ends with /v1.")
        _check(answer)
        try:
            return [{**card, "id": str(card["id"])} for card in answer.json()["data"]]
        except (ValueError, LookupError, TypeError):
            kind = answer.headers.get("content-type", "text without a type")
            raise ServerProblem(
                f"{self.url}/models is no list of models, but {kind:.80}: give the URL of an OpenAI API, which mostly "
                "ends with /v1."
            ) from None

    def first_model(self) -> str:
        """Return the server's name of its model, or of the first of several. Raises ServerProblem."""
        models = self.models()
        if not models:
            raise ServerProblem(f"{self.url}/models names no model: is one loaded there?")
        return str(models[0]["id"])

    def answer(self, body: dict[str, Any]) -> Generator[Delta]:
        """Send a request, and yield the answer as it comes. Closing the generator stops the answer."""
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with (
            self._readable_errors(),
            self._client.stream("POST", f"{self.url}/chat/completions", json=streamed) as answer,
        ):
            if answer.is_error:
                answer.read()
            _check(answer)
            for data in read_events(answer.iter_bytes()):
                if data == "[DONE]":
                    return
                yield _delta(data)

    def whole_answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request, and return the body of the whole answer. Raises ServerProblem."""
        with self._readable_errors():
            answer = self._client.post(f"{self.url}/chat/completions", json=body)
        _check(answer)
        return _object(answer)

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return what `/tokenize` beside `/v1` says of a conversation; None where a server has no such route."""
        with self._readable_errors():
            answer = self._client.post(f"{self.url.removesuffix('/v1')}/tokenize", json=body)
        return _object(answer) if answer.is_success else None

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turn errors of the connection into a ServerProblem of one line."""
        try:
            yield
        except httpx.ConnectError:
            start = "Start one with `tilewise serve`, or name it with --url."
            raise ServerProblem(f"No server answers at {self.url}. {start}") from None
        except httpx.RemoteProtocolError:
            raise ServerProblem(f"{self.url} ended in the middle of the answer.") from None
        except httpx.TimeoutException as error:
            seconds = error.request.extensions.get("timeout", {}).get("read")
            raise ServerProblem(
                f"{self.url} did not answer within {seconds} s: see whether it is busy, or another kind of server."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerProblem(f"{self.url}: {error or type(error).__name__}") from None


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def metric_sums(text: str) -> dict[str, float]:
    """Read Prometheus' text format: each sample summed over its labels, but for buckets; nothing of another text."""
    found: dict[str, float] = {}
    with suppress(ValueError):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not sample.name.endswith(("_bucket", "_created")):
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def key_headers(key: str | None) -> dict[str, str]:
    """Return the headers that give a server its key. Raises ServerProblem."""
    if key and not key.isascii():
        raise ServerProblem("An API key has letters, digits and signs of ASCII alone: type it again.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    hint = ". Give the key with --api-key, or in VLLM_API_KEY." if answer.status_code == 401 else ""
    said = error_text(answer.text) or answer.reason_phrase
    raise ServerProblem(f"{answer.status_code} {said.rstrip('.') if hint else said}{hint}")


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ServerProblem(f"{answer.url} sent what is no answer: {answer.text[:_LONGEST]!r}")
    return found


def _delta(data: str) -> Delta:
    try:
        event = json.loads(data)
        if event.get("error"):
            raise ServerProblem(error_text(data))
        choice = (event.get("choices") or [{}])[0]
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
        return Delta(
            delta.get("content") or "",
            reasoning,
            choice.get("finish_reason"),
            event.get("usage"),
            event.get("explanation"),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ServerProblem(f"The server sent what is no part of an answer: {data[:_LONGEST]!r}") from None


def error_text(text: str) -> str:
    """Return, in one line, the message of an error's body in any of the forms that servers give it, else its text."""
    try:
        found = json.loads(text)
        while isinstance(found, dict):
            found = next((found[key] for key in ("error", "message", "detail") if found.get(key)), None)
    except ValueError:
        found = text
    return " ".join(str(found or "").split())[:_LONGEST]
