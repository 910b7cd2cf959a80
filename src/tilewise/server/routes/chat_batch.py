"""POST /v1/chat/completions/batch: several conversations in one body, answered side by side."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.server.completion import MAX_PROMPTS
from tilewise.server.context import context_of
from tilewise.server.convert import chat_call
from tilewise.server.fields import CHAT
from tilewise.server.fields.field import Field, FieldTable, refused
from tilewise.server.fulfilment import check_answers
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import CONVERSATIONS
from tilewise.server.openapi.operation import GENERATION, Operation, RequestBody
from tilewise.server.protocol.answers import ChatCompletion
from tilewise.server.protocol.chat import BatchedChatBody
from tilewise.server.respond import chat_body, usage_body
from tilewise.server.routes.chat import prepared
from tilewise.server.routes.completions import all_answers
from tilewise.server.routes.exchange import exchange
from tilewise.server.routes.route import plain_router
from tilewise.types import Usage

router = plain_router()
_REFUSED = {
    "n": refused("n", "A batch has one answer for each conversation: send a conversation as often.", 1),
    "stream": refused("stream", "A batch comes whole: send false, or conversations on their own.", False),
    "stream_options": refused("stream_options", "A batch is not streamed: leave it out.", {}),
    "tools": refused("tools", "A batch calls no tools: send conversations with tools on their own.", []),
    "tool_choice": refused("tool_choice", "A batch calls no tools: leave it out.", "none"),
}


def _field(field: Field) -> Field:
    if field.name == "messages":
        return dataclasses.replace(field, note="A list of conversations, each a list of messages.")
    return _REFUSED.get(field.name, field)


BATCH = FieldTable("/v1/chat/completions/batch", tuple(map(_field, CHAT.fields)))
OPERATIONS = {
    "batched_chat_completions": Operation(
        gives="One choice for each conversation, in their order.",
        body=RequestBody(BatchedChatBody, BATCH, examples.BATCHED_CHAT, CONVERSATIONS),
        answer=ChatCompletion,
        statuses=GENERATION,
    )
}


@router.post("/v1/chat/completions/batch")
async def batched_chat_completions(raw: HttpRequest) -> Response:
    """Answer several conversations at once, pictures and videos included; not streamed, and without tools."""
    return await exchange(raw, context_of(raw).service, lambda body, ignored: answer_batch(raw, body, ignored))


async def answer_batch(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    context = context_of(raw)
    service = context.service
    conversations = _conversations(body)
    calls = [
        chat_call({**body, "messages": messages}, context.served, ignored, raw.headers.get("x-request-id"))
        for messages in conversations
    ]
    service.check_admission()
    async with service.deadline():
        requests = await asyncio.gather(*(prepared(raw, context, call, ignored) for call in calls))
        name = calls[0].reply.id
        for request in requests:
            context.log.received(name, request)
        outputs = await all_answers(context, name, requests)
        answers = [chat_body(call, output) for call, output in zip(calls, outputs, strict=True)]
        for call, output, answer in zip(calls, outputs, answers, strict=True):
            await check_answers(call, output, answer, service)
        headers = context.load_report(raw, ignored)
        return JSONResponse(_joined(answers, [output.usage for output in outputs]), headers=headers)


def _conversations(body: dict[str, Any]) -> list[Any]:
    """Raises InvalidField for what a batch cannot have, too."""
    for field in _REFUSED.values():
        if body.get(field.name) is not None and not field.asks_nothing(body[field.name]):
            raise InvalidField(field.name, f"{field.name} is not supported: {field.note}")
    found = body.get("messages")
    if not isinstance(found, list) or not found or not all(isinstance(one, list) and one for one in found):
        raise InvalidField("messages", "messages must be a list of conversations, each a list of at least one message.")
    if len(found) > MAX_PROMPTS:
        raise InvalidField("messages", f"messages has {len(found)} conversations, the most are {MAX_PROMPTS}.")
    return found


def _joined(answers: list[dict[str, Any]], usages: list[Usage]) -> dict[str, Any]:
    """The first answer's head, the choices of all, and their usage together."""
    fields = (field.name for field in dataclasses.fields(Usage))
    total = Usage(**{name: sum(getattr(usage, name) for usage in usages) for name in fields})
    choices = [{**answer["choices"][0], "index": number} for number, answer in enumerate(answers)]
    return {**answers[0], "choices": choices, "usage": usage_body(total)}
