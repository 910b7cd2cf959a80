"""POST /tokenize and /detokenize: what a text or a conversation becomes, pictures counted, and back."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.media_io import MediaOptions
from tilewise.inputs.messages import MediaReader
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.sampling import check_ids
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams
from tilewise.server.calls import ChatPrompt
from tilewise.server.context import context_of
from tilewise.server.convert import (
    begins_answer,
    check_special_tokens,
    check_template,
    ending_of,
    media_of,
    processor_of,
    thinking_of,
)
from tilewise.server.fields.field import UnknownFields
from tilewise.server.fields.tables import DETOKENIZE, TOKENIZE
from tilewise.server.messages import read_conversation
from tilewise.server.openapi import examples
from tilewise.server.openapi.conversation import CHAT_SHAPES
from tilewise.server.openapi.operation import JSON_BODY, Operation, RequestBody
from tilewise.server.protocol.answers import Detokenized, Tokens
from tilewise.server.protocol.bodies import ChatBody, DetokenizeBody, TokenizeBody
from tilewise.server.requests import conversation_request
from tilewise.server.routes.json_route import exchange, plain_router
from tilewise.server.served import ServedModel
from tilewise.server.toolcalls import read_tools

_OF_MESSAGES = {"tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "media_io_kwargs",
                "mm_processor_kwargs", "max_dynamic_patch", "min_dynamic_patch", "interleave_mm_strings",
                "enable_thinking"}  # fmt: skip


@dataclass(frozen=True)
class TokenizeCall:
    prompt: str | ChatPrompt
    start: bool
    """True if a text gets the tokenizer's start token."""
    spelled: bool
    """True if the tokens are wanted as the vocabulary spells them, too."""


def tokenize_call(body: dict[str, Any], served: ServedModel, ignored: Ignored) -> TokenizeCall:
    """Read a body of /tokenize; names without effect go into `ignored`.

    Raises InvalidRequest, UnknownModel or pydantic's ValidationError.
    """
    check_template(body)
    unknown = UnknownFields(ignored, served.strict_fields)
    fields = TokenizeBody.read(body, TOKENIZE, unknown)
    served.resolve(fields.model)
    if (fields.prompt is None) == (fields.messages is None):
        raise InvalidField("prompt", "Send either prompt or messages.")
    if fields.prompt is not None:
        for name in sorted(_OF_MESSAGES & fields.model_fields_set):
            raise InvalidField(name, f"{name} belongs to messages: leave it out with prompt.")
        return TokenizeCall(fields.prompt, fields.add_special_tokens is not False, fields.return_token_strs)
    check_special_tokens(fields.add_special_tokens, served, ignored)
    return TokenizeCall(_conversation(fields, served, unknown), start=True, spelled=fields.return_token_strs)


def _conversation(fields: TokenizeBody, served: ServedModel, unknown: UnknownFields) -> ChatPrompt:
    messages = fields.messages or []
    with_tools = replace(served, tools=True)  # they count whether or not calls are read out of answers
    asked = ChatBody(
        messages=messages, chat_template_kwargs=fields.chat_template_kwargs, enable_thinking=fields.enable_thinking
    )
    return ChatPrompt(
        messages=read_conversation(messages, unknown, served.detail_levels),
        thinking=thinking_of(asked, served, unknown.ignored),
        tools=read_tools(fields.tools, None, True, with_tools).definitions,
        ending=ending_of(fields.add_generation_prompt, fields.continue_final_message or begins_answer(messages)),
        processor=processor_of(fields),
        media=media_of(fields.media_io_kwargs, unknown.ignored),
    )


def tokenize_body(call: TokenizeCall, preparer: Preparer, reader: MediaReader) -> dict[str, Any]:
    """Return the tokens of a prompt. It may be longer than the context here: that is what one wants to know."""
    counting, sampling = replace(preparer, max_model_len=sys.maxsize), SamplingParams()
    if isinstance(call.prompt, ChatPrompt):
        ids = conversation_request(call.prompt, sampling, counting, reader).prompt_ids
    else:
        ids = counting.prompt(call.prompt, (), sampling, start=call.start).prompt_ids if call.prompt else ()
    tokens = [preparer.tokenizer.token_text(i) for i in ids] if call.spelled else None
    return {"count": len(ids), "max_model_len": preparer.max_model_len, "tokens": list(ids), "token_strs": tokens}


def detokenize_body(
    body: dict[str, Any], served: ServedModel, tokenizer: Tokenizer, ignored: Ignored
) -> dict[str, Any]:
    fields = DetokenizeBody.read(body, DETOKENIZE, UnknownFields(ignored, served.strict_fields))
    served.resolve(fields.model)
    check_ids("tokens", fields.tokens, tokenizer)
    return {"prompt": tokenizer.decode(fields.tokens, skip_special_tokens=False)}


router = plain_router()
OPERATIONS = {
    "tokenize": Operation(
        gives="The tokens, and how many they are.",
        body=RequestBody(TokenizeBody, TOKENIZE, examples.TOKENIZE, CHAT_SHAPES),
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
