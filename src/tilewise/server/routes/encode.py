"""POST /v1/encode of `tilewise encode-server`: from pictures to what `image_embeds` takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tilewise.engine.encode_core import EncodedDelta
from tilewise.errors import EngineDead, InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.embeddings import IMAGE_EMBEDS
from tilewise.inputs.images import MAX_TILES
from tilewise.inputs.media_io import MediaOptions
from tilewise.inputs.media_reader import MediaReader
from tilewise.inputs.messages import MessageParts, read_picture
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.tensor_file import write_safetensors
from tilewise.server.context import Context, context_of
from tilewise.server.convert import processor_of
from tilewise.server.fields.field import UnknownFields
from tilewise.server.fields.tables import ENCODE
from tilewise.server.messages import read_input
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import ENCODE_SHAPES
from tilewise.server.openapi.operation import GENERATION, Operation, RequestBody
from tilewise.server.protocol.bodies import EncodeBody, EncodedList
from tilewise.server.routes.json_route import exchange, plain_router
from tilewise.server.served import ServedModel
from tilewise.types import ImageInput, Request

MOST_PICTURES = 64
MOST_TILES = MAX_TILES + 1
"""Most tiles of all pictures of a request, whose rows come in one answer: as many as one picture may have."""


@dataclass(frozen=True)
class EncodeCall:
    model: str
    parts: tuple[dict[str, Any], ...]
    processor: dict[str, Any]


def encode_call(body: dict[str, Any], served: ServedModel, ignored: Ignored) -> EncodeCall:
    """Read a body of /v1/encode; names without effect go into `ignored`.

    Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
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
    """Return the engine's request, with the pictures fetched, decoded and cut.

    May take as long as a download does. Raises InvalidRequest.
    """
    parts = MessageParts("user")
    for number, part in enumerate(call.parts):
        parts.add(part, f"input[{number}]")
    reader.check_count("image", len(parts.images))
    return preparer.encoding([read_picture(part, reader) for part in parts.images], call.processor, MOST_TILES)


def encode_body(call: EncodeCall, request: Request, found: EncodedDelta) -> bytes:
    """Return the answer, in JSON."""
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
        "object": IMAGE_EMBEDS,
        "index": index,
        IMAGE_EMBEDS: base64.b64encode(write_safetensors(IMAGE_EMBEDS, tensor)).decode(),
        "tiles": len(rows),
        "cached_tiles": sum(cached),
        "image_tokens": tensor.shape[0] * tensor.shape[1],
        "width": image.original_size[0],
        "height": image.original_size[1],
    }


router = plain_router()
OPERATIONS = {
    "encode": Operation(
        gives="The rows of each picture, as `image_embeds` of a message takes them.",
        body=RequestBody(EncodeBody, ENCODE, examples.ENCODE, ENCODE_SHAPES),
        answer=EncodedList,
        statuses=GENERATION,
    )
}


@router.post("/v1/encode")
async def encode(raw: HttpRequest) -> Response:
    """Encode pictures, without a question about them."""
    context = context_of(raw)
    return await exchange(raw, context.service, lambda body, ignored: _answer(raw, context, body, ignored))


async def _answer(raw: HttpRequest, context: Context, body: dict[str, Any], ignored: Ignored) -> Response:
    service = context.service
    call = encode_call(body, context.served, ignored)
    service.check_admission()
    async with service.deadline():
        scope, preparer = context.scope(raw, None), service.preparer
        request = await service.read(
            lambda reader: encode_request(call, preparer, reader), MediaOptions(), scope, ignored
        )
        async with service.engine.open([request]) as stream:
            async for found in stream:
                return await _response(call, context, request, found[0])
    raise EngineDead("The engine has ended without rows: send the request again.")


async def _response(call: EncodeCall, context: Context, request: Any, found: EncodedDelta) -> Response:
    """Return the answer; its base64 and JSON, megabytes of them, are made in a thread."""
    content = await context.service.prepare(lambda: encode_body(call, request, found))
    return Response(content, media_type="application/json")
