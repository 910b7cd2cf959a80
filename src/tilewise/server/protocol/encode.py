"""/v1/encode."""

from __future__ import annotations

from typing import Any, Literal

from tilewise.server.protocol.common import Body, Strict


class EncodeBody(Body):
    model: str | None = None
    input: str | dict[str, Any] | list[str | dict[str, Any]]
    encoding_format: Literal["base64"] = "base64"
    mm_processor_kwargs: dict[str, Any] | None = None
    max_dynamic_patch: int | None = None
    min_dynamic_patch: int | None = None


class EncodedImage(Strict):
    object: Literal["image_embeds"]
    index: int
    image_embeds: str
    """A safetensors file in base64: one tensor [tiles, tokens, hidden]."""
    tiles: int
    cached_tiles: int
    """Of them, those that had been encoded before."""
    image_tokens: int
    """That the picture takes in a prompt, without the two around it."""
    width: int
    height: int


class EncodeUsage(Strict):
    image_tokens: int
    tiles: int
    cached_tiles: int


class EncodedList(Strict):
    object: Literal["list"]
    model: str
    data: list[EncodedImage]
    usage: EncodeUsage
