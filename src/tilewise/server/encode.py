"""POST /v1/encode of `tilewise encode-server`: from pictures to what `image_embeds` takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from typing_extensions import TypedDict

from tilewise.engine.encode_core import EncodedDelta
from tilewise.errors import EngineDead, InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.media.arrays import IMAGE_EMBEDS
from tilewise.inputs.media.reader import MediaOptions, MediaPart, MediaReader
from tilewise.inputs.media.tensor_file import write_safetensors
from tilewise.inputs.media.tiling import MAX_TILES
from tilewise.inputs.messages import open_picture, parse_pictures
from tilewise.inputs.prepare import Preparer
from tilewise.server.bodies import EncodeBody
from tilewise.server.body import UnknownFields
from tilewise.server.chat.call import processor_of
from tilewise.server.context import context_of
from tilewise.server.exchange import Router
from tilewise.server.messages import RequestRules
from tilewise.server.openapi import GENERATION, Operation
from tilewise.server.served import ServedModel
from tilewise.types import ImageInput, Request, SequenceFailure

router = Router()
MOST_PICTURES = 64
MOST_TILES = MAX_TILES + 1
"""Most tiles of all pictures of a request, whose rows come in one answer: as many as one picture may have."""


class EncodedImage(TypedDict):
    object: Literal["image_embeds"]
    index: int
    image_embeds: str
    """A safetensors file in base64: one tensor [tiles, tokens, hidden]."""
    tiles: int
    cached_tiles: int
    """Tiles that had been encoded before."""
    image_tokens: int
    """Tokens that the picture takes in a prompt, without the two around it."""
    width: int
    height: int


class EncodeUsage(TypedDict):
    image_tokens: int
    tiles: int
    cached_tiles: int


class EncodedList(TypedDict):
    object: Literal["list"]
    model: str
    data: list[EncodedImage]
    usage: EncodeUsage


@dataclass(frozen=True)
class EncodeCall:
    model: str
    pictures: list[MediaPart]
    processor: dict[str, Any]


def encode_call(body: dict[str, Any], served: ServedModel, ignored: Ignored) -> EncodeCall:
    """Read a body of /v1/encode; names without effect go into `ignored`.

    Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
    unknown = UnknownFields(ignored, served.config.strict_fields)
    fields = EncodeBody.read(body, unknown)
    parts = fields.input if isinstance(fields.input, list) else [fields.input]
    if not 1 <= len(parts) <= MOST_PICTURES:
        raise InvalidField("input", f"input has {len(parts)} pictures, it must have 1 to {MOST_PICTURES}: send several "
                           "requests.")  # fmt: skip
    rules = RequestRules(unknown, served.config.detail_tiles or {}, "input")
    return EncodeCall(served.resolve(fields.model), parse_pictures(parts, rules), processor_of(fields))


def encode_request(call: EncodeCall, preparer: Preparer, reader: MediaReader) -> Request:
    """Return the engine's request, with the pictures fetched, decoded and cut.

    May take as long as a download does. Raises InvalidRequest.
    """
    reader.check_count("image", len(call.pictures))
    return preparer.encoding([open_picture(part, reader) for part in call.pictures], call.processor, MOST_TILES)


def encode_body(call: EncodeCall, request: Request, found: EncodedDelta) -> bytes:
    """Return the answer, in JSON."""
    data, start = [], 0
    for index, image in enumerate(request.images):
        stop = start + len(image.tiles)
        data.append(_picture(index, image, found.rows[start:stop], found.cached[start:stop]))
        start = stop
    usage: EncodeUsage = {
        "image_tokens": sum(one["image_tokens"] for one in data),
        "tiles": sum(one["tiles"] for one in data),
        "cached_tiles": sum(one["cached_tiles"] for one in data),
    }
    answer: EncodedList = {"object": "list", "model": call.model, "data": data, "usage": usage}
    return json.dumps(answer).encode()


def _picture(index: int, image: ImageInput, rows: Sequence[Any], cached: Sequence[bool]) -> EncodedImage:
    tensor = np.stack(rows)
    return {
        "object": "image_embeds",
        "index": index,
        "image_embeds": base64.b64encode(write_safetensors(IMAGE_EMBEDS, tensor)).decode(),
        "tiles": len(rows),
        "cached_tiles": sum(cached),
        "image_tokens": tensor.shape[0] * tensor.shape[1],
        "width": image.original_size[0],
        "height": image.original_size[1],
    }


@router.on_json(
    "/v1/encode",
    Operation(
        gives="The rows of each picture, as `image_embeds` of a message takes them.",
        body=EncodeBody,
        answer=EncodedList,
        statuses=GENERATION,
    ),
)
async def encode(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """Encode pictures, without a question about them."""
    context = context_of(raw)
    service = context.service
    call = encode_call(body, context.served, ignored)
    async with service.admitted():
        request = await service.read(
            lambda reader: encode_request(call, service.preparer, reader),
            MediaOptions(),
            context.scope(raw, None),
            ignored,
        )
        async with service.engine.open([request]) as stream:
            async for found in stream:
                if isinstance(found[0], SequenceFailure):
                    raise found[0].error
                # Its base64 and JSON, megabytes of them, are made in a thread.
                content = await service.prepare(partial(encode_body, call, request, found[0]))
                return Response(content, media_type="application/json")
    raise EngineDead("The engine has ended without rows: send the request again.")
