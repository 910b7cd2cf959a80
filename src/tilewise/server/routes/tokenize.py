"""POST /tokenize and /detokenize"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.ignored import Ignored
from tilewise.inputs.media_io import MediaOptions
from tilewise.server.calls import ChatPrompt
from tilewise.server.context import context_of
from tilewise.server.fields import DETOKENIZE, TOKENIZE
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import CONVERSATION
from tilewise.server.openapi.operation import JSON_BODY, Operation, RequestBody
from tilewise.server.protocol.answers import Detokenized, Tokens
from tilewise.server.protocol.tokenize import DetokenizeBody, TokenizeBody
from tilewise.server.routes.exchange import exchange
from tilewise.server.routes.route import plain_router
from tilewise.server.tokenize import detokenize_body, tokenize_body, tokenize_call

router = plain_router()
OPERATIONS = {
    "tokenize": Operation(
        gives="The tokens, and how many they are.",
        body=RequestBody(TokenizeBody, TOKENIZE, examples.TOKENIZE, CONVERSATION),
        answer=Tokens,
        statuses=(*JSON_BODY, 504),
    ),
    "detokenize": Operation(
        gives="Their text.",
        body=RequestBody(DetokenizeBody, DETOKENIZE, examples.DETOKENIZE),
        answer=Detokenized,
        statuses=JSON_BODY,
    ),
}


@router.post("/tokenize")
async def tokenize(raw: HttpRequest) -> Response:
    """The tokens of a text, or of a conversation with its pictures."""
    context = context_of(raw)
    service = context.service

    async def work(body: dict[str, Any], ignored: Ignored) -> Response:
        call = tokenize_call(body, context.served, ignored)
        async with service.deadline():
            media = call.prompt.media if isinstance(call.prompt, ChatPrompt) else MediaOptions()
            scope = context.scope(raw, None)
            found = await service.read(
                lambda reader: tokenize_body(call, service.preparer, reader), media, scope, ignored
            )
            return JSONResponse(found)

    return await exchange(raw, service, work)


@router.post("/detokenize")
async def detokenize(raw: HttpRequest) -> Response:
    """The text of tokens, special ones by name."""
    context = context_of(raw)
    service = context.service

    async def work(body: dict[str, Any], ignored: Ignored) -> Response:
        tokenizer = service.preparer.tokenizer
        found = await service.prepare(lambda: detokenize_body(body, context.served, tokenizer, ignored))
        return JSONResponse(found)

    return await exchange(raw, service, work)
