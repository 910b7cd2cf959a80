"""The servers that a web chat talks to, with their models. A browser chooses among them and can name no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tilewise.chat_server import ChatServer, ServerProblem, key_headers
from tilewise.host import is_here
from tilewise.inputs.media.tiling import Tiling


@dataclass(frozen=True)
class ServedCard:
    """A model that a server has, as `/v1/models` describes it."""

    url: str
    model: str
    tiling: Tiling = Tiling()
    """The rules by which it cuts pictures, where the server says them; else those of released checkpoints."""
    tokens_per_tile: int | None = None
    detail_tiles: Mapping[str, int] = field(default_factory=dict)
    """Most tiles of a picture by its `detail`, where the server says it."""
    root: str = ""
    """Checkpoint behind the name, where the server says it."""
    ours: bool = False
    """True for a Tilewise server, which is asked how an answer was made, too."""

    def tiling_of(self, max_tiles: int, detail: str) -> Tiling:
        """Return the rules for a picture with a `detail`, in a request with a most of tiles of its own."""
        most = min(max_tiles, self.detail_tiles.get(detail, max_tiles))
        return self.tiling.override({"max_dynamic_patch": most})


@dataclass(frozen=True)
class Servers:
    """URLs of OpenAI-compatible servers, such as http://127.0.0.1:9997/v1."""

    urls: tuple[str, ...]
    model: str | None = None
    """Name that is asked for, whatever the servers list."""
    _seen: dict[str, ServedCard] = field(default_factory=dict)
    _problems: dict[str, str] = field(default_factory=dict)
    """URL -> problem of a server when it was last asked for its models."""

    def choices(self, key: str | None) -> list[str]:
        """Return a label for each model of each server that answers; the labels are what `card` takes."""
        found = [card for url in self.urls for card in self._cards(url, key)]
        names = [card.model for card in found]
        for card in found:
            label = card.model if names.count(card.model) == 1 else f"{card.model} @ {card.url}"
            self._seen[label] = card
        return [label for label, card in self._seen.items() if card in found]

    def card(self, label: str | None) -> ServedCard:
        """Return the model under a label. Raises ServerProblem."""
        if (card := self._seen.get(label or "")) is None:
            raise ServerProblem(
                "; ".join(self._problems.values())
                or f"No server answers at {', '.join(self.urls)}: start one with `tilewise serve`, then send again."
            )
        return card

    def open(self, card: ServedCard, key: str | None) -> ChatServer:
        return ChatServer(card.url, key)

    def _cards(self, url: str, key: str | None) -> Sequence[ServedCard]:
        if self.model is not None:
            return [ServedCard(url, self.model)]
        self._problems.pop(url, None)
        try:
            with ChatServer(url, key) as server:
                return [card_of(url, described) for described in server.models()]
        except ServerProblem as problem:
            self._problems[url] = str(problem)
            if str(problem).startswith("401 "):
                wanted = "another key" if key else "a key"
                self._problems[url] = f"{url} asks for {wanted}: type it into the field at the top."
            return []


def card_of(url: str, described: dict[str, Any]) -> ServedCard:
    """Read one entry of `/v1/models`."""
    tiling = described.get("tiling") or {}
    known = {
        "tile_size": tiling.get("tile_size"),
        "min_tiles": tiling.get("min_dynamic_patch"),
        "max_tiles": tiling.get("max_dynamic_patch"),
        "thumbnail": tiling.get("use_thumbnail"),
        "dynamic": tiling.get("dynamic_image_size"),
    }
    rules = Tiling(**{name: value for name, value in known.items() if value is not None})
    return ServedCard(
        url,
        str(described["id"]),
        rules,
        tiling.get("tokens_per_tile"),
        tiling.get("detail_tiles") or {},
        described.get("root") or "",
        described.get("owned_by") == "tilewise",
    )


def metrics_text(url: str, key: str | None) -> str:
    """Return a server's metrics in Prometheus's text format. Raises ServerProblem."""
    address = url.rstrip("/").removesuffix("/v1") + "/metrics"
    try:
        answer = httpx.get(address, headers=key_headers(key), timeout=5, trust_env=not is_here(url))
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise ServerProblem(f"{address} gives no metrics: {error}") from None
    return answer.text
