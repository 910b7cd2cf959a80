"""Mixed traffic: requests of every kind, each with the answers that may come of it, asked without end."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.served import PICTURES

DEADLINE = 60.0
"""Seconds in which every request has an answer or an error (`--request-timeout`)."""
_GRACE = 15.0
AWAY = {429, 503}
"""Statuses of a server that has too much to do, or no engine for a while; each says when to ask again."""


@dataclass(frozen=True)
class Ask:
    """A request, and what may come of it while nothing is killed."""

    kind: str
    path: str
    body: dict[str, Any]
    statuses: frozenset[int] = frozenset({200})
    leaves: bool = False
    """True for a client that leaves in the middle of its answer."""


@dataclass
class Ledger:
    """The outcomes of all requests: each has exactly one."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Counts by kind of request and by what became of it."""
    unexpected: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def total(self) -> int:
        return self.outcomes.total()

    def note(self, ask: Ask, outcome: str, seconds: float) -> None:
        self.outcomes[ask.kind, outcome] += 1
        self.slowest = max(self.slowest, seconds)

    def wrong(self, ask: Ask, what: str) -> None:
        self.unexpected.append(f"{ask.kind}: {what[:500]}")

    def by_outcome(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (_, outcome), count in self.outcomes.items():
            found[outcome] += count
        return found


class Mix:
    """A source of requests, drawn by chance; pictures are new ones more often than not."""

    def __init__(self, seed: int, extra: Sequence[Callable[[], Ask]] = ()) -> None:
        self._chance = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._known = [path.read_bytes() for path in sorted(PICTURES.glob("*.png"))]
        kinds: dict[Callable[[], Ask], int] = {
            self._text: 6,
            self._stream: 6,
            self._new_picture: 8,
            self._known_picture: 4,
            self._several_pictures: 2,
            self._leaver: 3,
            self._structured: 2,
            self._several_answers: 1,
            self._completion: 2,
            self._broken_picture: 2,
            self._too_long: 1,
            self._tokenized: 2,
            **dict.fromkeys(extra, 2),
        }
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def next(self) -> Ask:
        (kind,) = self._chance.choices(self._kinds, self._weights)
        return kind()

    def _chat(self, content: Any, *, temperature: float = 0, **options: Any) -> dict[str, Any]:
        messages, tokens = [{"role": "user", "content": content}], self._chance.randint(1, 24)
        return {"messages": messages, "max_tokens": tokens, "temperature": temperature, **options}

    def _about(self, *files: bytes, **options: Any) -> dict[str, Any]:
        urls = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return self._chat([*parts, {"type": "text", "text": "What is the word?"}], **options)

    def _picture(self) -> bytes:
        width, height = self._chance.randint(40, 500), self._chance.randint(40, 500)
        small = self._noise.integers(0, 256, (max(2, height // 20), max(2, width // 20), 3), np.uint8)
        file = io.BytesIO()
        image = Image.fromarray(small).resize((width, height))
        image.save(file, self._chance.choice(["PNG", "JPEG", "WEBP"]))
        return file.getvalue()

    def _text(self) -> Ask:
        return Ask("text", "/v1/chat/completions", self._chat("What is this? " * self._chance.randint(1, 30)))

    def _stream(self) -> Ask:
        return Ask("stream", "/v1/chat/completions", self._chat("Tell me more.", stream=True))

    def _new_picture(self) -> Ask:
        stream = self._chance.random() < 0.5
        return Ask("new picture", "/v1/chat/completions", self._about(self._picture(), stream=stream))

    def _known_picture(self) -> Ask:
        return Ask("known picture", "/v1/chat/completions", self._about(self._chance.choice(self._known)))

    def _several_pictures(self) -> Ask:
        return Ask("several pictures", "/v1/chat/completions", self._about(*(self._picture() for _ in range(3))))

    def _leaver(self) -> Ask:
        body = self._about(self._picture(), stream=True, ignore_eos=True)
        return Ask("leaver", "/v1/chat/completions", {**body, "max_tokens": 400}, leaves=True)

    def _structured(self) -> Ask:
        schema = {"type": "object", "properties": {"word": {"type": "string", "maxLength": 5}}, "required": ["word"]}
        form = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
        return Ask("structured", "/v1/chat/completions", self._chat("Which word?", response_format=form))

    def _several_answers(self) -> Ask:
        return Ask("several answers", "/v1/chat/completions", self._chat("And?", n=3, temperature=1.0))

    def _completion(self) -> Ask:
        return Ask("completion", "/v1/completions", {"prompt": "The word is", "max_tokens": 5})

    def _broken_picture(self) -> Ask:
        body = self._about(self._picture()[: self._chance.randint(0, 60)])
        return Ask("broken picture", "/v1/chat/completions", body, frozenset({400}))

    def _too_long(self) -> Ask:
        return Ask("too long", "/v1/chat/completions", self._chat("word " * 5000), frozenset({400}))

    def _tokenized(self) -> Ask:
        return Ask("tokenized", "/tokenize", {"prompt": "What is this?"})


class Clients:
    """So many clients, who ask one request after the other and note what became of it."""

    def __init__(
        self, url: str, count: int, ledger: Ledger, seed: int = 0, extra: Sequence[Callable[[], Ask]] = ()
    ) -> None:
        self._url, self._count, self.ledger = url, count, ledger
        self._mix = Mix(seed, extra)
        self.asked = 0

    async def run(self, goes_on: Callable[[], bool]) -> None:
        limits = httpx.Limits(max_connections=self._count, max_keepalive_connections=self._count // 2)
        patience = httpx.Timeout(DEADLINE + _GRACE)
        async with httpx.AsyncClient(base_url=self._url, limits=limits, timeout=patience, trust_env=False) as client:
            await asyncio.gather(*(self._ask_on(client, goes_on) for _ in range(self._count)))

    async def _ask_on(self, client: httpx.AsyncClient, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            self.asked += 1
            ask, began = self._mix.next(), time.monotonic()
            try:
                outcome = await self._ask(client, ask)
            except httpx.TimeoutException:
                outcome = "nothing within its deadline"
                self.ledger.wrong(ask, outcome)
            except httpx.TransportError as error:
                outcome = f"connection lost ({type(error).__name__})"
                self.ledger.wrong(ask, f"{outcome}: {error}")
            self.ledger.note(ask, outcome, time.monotonic() - began)
            if outcome in ("429", "503", "error in stream 503"):
                await asyncio.sleep(0.2)  # less than is asked for, so that refusals are tried as well

    async def _ask(self, client: httpx.AsyncClient, ask: Ask) -> str:
        async with client.stream("POST", ask.path, json=ask.body) as answer:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                return await self._read(answer, ask)
            await answer.aread()
        if answer.status_code in AWAY:
            if int(answer.headers.get("retry-after", 0)) < 1:
                self.ledger.wrong(ask, f"{answer.status_code} without Retry-After: {answer.text}")
        elif answer.status_code not in ask.statuses:
            self.ledger.wrong(ask, f"{answer.status_code}: {answer.text}")
        elif answer.status_code >= 400 and "error" not in answer.json():
            self.ledger.wrong(ask, f"{answer.status_code} without an error: {answer.text}")
        return f"{answer.status_code}"

    async def _read(self, answer: httpx.Response, ask: Ask) -> str:
        """Read a stream to its end, or leave it after some events; return what became of it."""
        events: list[str] = []
        async for line in answer.aiter_lines():
            events += [line.removeprefix("data: ")] if line.startswith("data: ") else []
            if ask.leaves and len(events) > 5:
                return "left"
        if not events or events[-1] != "[DONE]":
            self.ledger.wrong(ask, f"a stream that ends with {events[-1:]}")
            return "stream without an end"
        error = json.loads(events[-2]).get("error") if len(events) > 1 else None
        if error is None:
            return "200"
        if error["code"] not in AWAY:
            self.ledger.wrong(ask, f"an error in a stream: {error}")
        return f"error in stream {error['code']}"
