"""POST /invocations: the one route of SageMaker, for chat and text completions alike."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tilewise.errors import InvalidRequest
from tilewise.ignored import Ignored
from tilewise.server.context import context_of
from tilewise.server.openapi.operation import GENERATION, Operation
from tilewise.server.protocol.answers import ChatChunk, ChatCompletion, TextChunk, TextCompletion
from tilewise.server.routes import chat, completions
from tilewise.server.routes.json_route import exchange, plain_router

router = plain_router()
OPERATIONS = {
    "invocations": Operation(
        gives="What /v1/chat/completions answers to a body with messages, and /v1/completions to one with a prompt.",
        body=(chat.BODY, completions.BODY),
        answer=(ChatCompletion, TextCompletion),
        events=(ChatChunk, TextChunk),
        statuses=GENERATION,
    )
}


@router.post("/invocations")
async def invocations(raw: HttpRequest) -> Response:
    """Answer a body as the route does that takes such bodies, as SageMaker asks."""

    async def work(body: dict[str, Any], ignored: Ignored) -> Response:
        if "messages" in body:
            return await chat.answer_chat(raw, body, ignored)
        if "prompt" in body:
            return await completions.answer_completion(raw, body, ignored)
        raise InvalidRequest(
            "/invocations takes bodies of /v1/chat/completions, which have messages, and of /v1/completions, which "
            "have a prompt: send one of them."
        )

    return await exchange(raw, context_of(raw).service, work)
