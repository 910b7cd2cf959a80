"""What a plan is asked for: a model and its options, devices, a layout, and the requests that will come."""

from __future__ import annotations

from dataclasses import dataclass

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.layout import Layout
from tilewise.option import check_range
from tilewise.plan.devices import Devices

MARKS = 2
"""Tokens around the rows of a picture: <img> and </img>."""


@dataclass(frozen=True, slots=True)
class RequestShape:
    """A prompt with so many tokens of text and so many pictures, each in so many tiles, and its answer."""

    prompt_tokens: int = 256
    pictures: int = 1
    tiles: int = 13
    """Of each picture, thumbnail included."""
    answer_tokens: int = 512

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("pictures", 0), ("tiles", 1), ("answer_tokens", 1)):
            check_range(name, getattr(self, name), least)

    def prompt(self, tokens_per_tile: int) -> int:
        """Tokens of the whole prompt."""
        return self.prompt_tokens + self.pictures * self.picture(tokens_per_tile)

    def tokens(self, tokens_per_tile: int) -> int:
        """Of prompt and answer together."""
        return self.prompt(tokens_per_tile) + self.answer_tokens

    def picture(self, tokens_per_tile: int) -> int:
        return self.tiles * tokens_per_tile + MARKS

    def most_pictures(self, context: int, tokens_per_tile: int, limit: int | None) -> int:
        """Pictures that such a request may have in a context; `limit` is that of limit_mm_per_prompt."""
        room = max(0, context - self.prompt_tokens - self.answer_tokens) // self.picture(tokens_per_tile)
        return room if limit is None else min(room, limit)

    def check_limit(self, limits: dict[str, int] | None) -> None:
        """Raises InvalidConfig for more pictures than a prompt may have."""
        limit = (limits or {}).get("image")
        if limit is not None and self.pictures > limit:
            raise InvalidConfig(
                f"--pictures {self.pictures} is more than the {limit} that limit_mm_per_prompt allows: lower one or "
                "raise the other."
            )


@dataclass(frozen=True)
class Wishes:
    """What a plan is asked for."""

    config: EngineConfig
    quantization: str | None
    devices: Devices
    layout: Layout | None
    """None = the recommended one."""
    shape: RequestShape
    tiles_stated: bool
    """Otherwise a picture has as many tiles as the checkpoint cuts at most."""
