"""/v1/encode: from a body to pictures that are cut, and from rows to what `image_embeds` takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewise.engine.encode_core import EncodedDelta
from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.chat import read_picture
from tilewise.inputs.embeddings import KEY
from tilewise.inputs.images import MAX_TILES
from tilewise.inputs.media_reader import MediaReader
from tilewise.inputs.parts import Parts
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.tensor_file import write_safetensors
from tilewise.server.convert import processor_of
from tilewise.server.fields import ENCODE, UnknownFields
from tilewise.server.messages import read_input
from tilewise.server.protocol.encode import EncodeBody
from tilewise.server.served import ServedModel
from tilewise.types import ImageInput, Request

MOST_PICTURES = 64
MOST_TILES = MAX_TILES + 1
"""Of all pictures of a request, whose rows come in one answer: as many as one picture may have."""


@dataclass(frozen=True)
class EncodeCall:
    model: str
    parts: tuple[dict[str, Any], ...]
    processor: dict[str, Any]


def encode_call(body: dict[str, Any], served: ServedModel, ignored: Ignored) -> EncodeCall:
    """Names without effect go into `ignored`. Raises InvalidRequest, UnknownModel or pydantic's ValidationError."""
    unknown = UnknownFields(ignored, served.strict_fields)
    fields = EncodeBody.read(body, ENCODE, unknown)
    parts = fields.input if isinstance(fields.input, list) else [fields.input]
    if not 1 <= len(parts) <= MOST_PICTURES:
        raise InvalidField("input", f"input has {len(parts)} pictures, it must have 1 to {MOST_PICTURES}: send several "
                           "requests.")  # fmt: skip
    return EncodeCall(
        served.resolve(fields.model), read_input(parts, unknown, served.detail_levels), processor_of(fields)
    )


def encode_request(call: EncodeCall, preparer: Preparer, reader: MediaReader) -> Request:
    """The pictures, fetched, decoded and cut; may take as long as a download does. Raises InvalidRequest."""
    parts = Parts("user")
    for number, part in enumerate(call.parts):
        parts.add(part, f"input[{number}]")
    reader.check_count("image", len(parts.images))
    return preparer.encoding([read_picture(part, reader) for part in parts.images], call.processor, MOST_TILES)


def encode_body(call: EncodeCall, request: Request, found: EncodedDelta) -> bytes:
    """The answer, in JSON."""
    data = [_picture(index, image, *part) for index, (image, part) in enumerate(_by_picture(request, found))]
    counts = {name: sum(one[name] for one in data) for name in ("image_tokens", "tiles", "cached_tiles")}
    return json.dumps({"object": "list", "model": call.model, "data": data, "usage": counts}).encode()


def _by_picture(
    request: Request, found: EncodedDelta
) -> Iterator[tuple[ImageInput, tuple[tuple[Any, ...], tuple[bool, ...]]]]:
    start = 0
    for image in request.images:
        stop = start + len(image.tiles)
        yield image, (found.rows[start:stop], found.cached[start:stop])
        start = stop


def _picture(index: int, image: ImageInput, rows: tuple[Any, ...], cached: tuple[bool, ...]) -> dict[str, Any]:
    tensor = np.stack(rows)
    return {
        "object": KEY,
        "index": index,
        KEY: base64.b64encode(write_safetensors(KEY, tensor)).decode(),
        "tiles": len(rows),
        "cached_tiles": sum(cached),
        "image_tokens": tensor.shape[0] * tensor.shape[1],
        "width": image.original_size[0],
        "height": image.original_size[1],
    }
