"""POST /v1/encode, of `tilewise encode-server`"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tilewise.engine.encode_core import EncodedDelta
from tilewise.errors import EngineDead
from tilewise.ignored import Ignored
from tilewise.inputs.media_io import MediaOptions
from tilewise.server.context import Context, context_of
from tilewise.server.encoding import EncodeCall, encode_body, encode_call, encode_request
from tilewise.server.fields import ENCODE
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import ENCODED
from tilewise.server.openapi.operation import GENERATION, Operation, RequestBody
from tilewise.server.protocol.encode import EncodeBody, EncodedList
from tilewise.server.routes.exchange import exchange
from tilewise.server.routes.route import plain_router

router = plain_router()
OPERATIONS = {
    "encode": Operation(
        gives="The rows of each picture, as `image_embeds` of a message takes them.",
        body=RequestBody(EncodeBody, ENCODE, examples.ENCODE, ENCODED),
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
    """Base64 and JSON of megabytes are made in a thread."""
    content = await context.service.prepare(lambda: encode_body(call, request, found))
    return Response(content, media_type="application/json")
