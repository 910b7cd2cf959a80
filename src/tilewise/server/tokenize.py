"""POST /tokenize and /detokenize: what a text or a conversation becomes, pictures counted, and back."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.media.reader import MediaOptions, MediaReader
from tilewise.inputs.options import check_ids
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.request_builder import ChatPrompt
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams
from tilewise.server.bodies import DetokenizeBody, TokenizeBody
from tilewise.server.body import UnknownFields
from tilewise.server.chat.call import check_template, prompt_of
from tilewise.server.chat.tools import read_tools
from tilewise.server.context import context_of
from tilewise.server.exchange import Router
from tilewise.server.openapi import JSON_BODY, Operation
from tilewise.server.prompt_fields import ConversationFields
from tilewise.server.served import ServedModel

router = Router()
_OF_MESSAGES = {"tools", *ConversationFields.model_fields}


class Tokens(TypedDict):
    """A prompt may be longer than the context here."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    prompt: str


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
    unknown = UnknownFields(ignored, served.config.strict_fields)
    fields = TokenizeBody.read(body, unknown)
    served.resolve(fields.model)
    if (fields.prompt is None) == (fields.messages is None):
        raise InvalidField("prompt", "Send either prompt or messages.")
    if fields.prompt is not None:
        for name in sorted(_OF_MESSAGES & fields.model_fields_set):
            raise InvalidField(name, f"{name} belongs to messages: leave it out with prompt.")
        return TokenizeCall(fields.prompt, fields.add_special_tokens is not False, fields.return_token_strs)
    tools = read_tools(fields.tools, None, True, replace(served, tools=True))  # they count, read out of answers or not
    prompt = prompt_of(fields, tools, served, unknown)
    return TokenizeCall(prompt, start=True, spelled=fields.return_token_strs)


def tokenize_body(call: TokenizeCall, preparer: Preparer, reader: MediaReader) -> Tokens:
    """Return the tokens of a prompt. It may be longer than the context here: that is what one wants to know."""
    counting, sampling = replace(preparer, max_model_len=sys.maxsize), SamplingParams()
    if isinstance(call.prompt, ChatPrompt):
        ids = call.prompt.request(sampling, counting, reader).prompt_ids
    else:
        ids = counting.prompt(call.prompt, (), sampling, start=call.start).prompt_ids if call.prompt else ()
    tokens = [preparer.tokenizer.token_text(i) or "" for i in ids] if call.spelled else None
    return {"count": len(ids), "max_model_len": preparer.max_model_len, "tokens": list(ids), "token_strs": tokens}


def detokenize_body(body: dict[str, Any], served: ServedModel, tokenizer: Tokenizer, ignored: Ignored) -> Detokenized:
    fields = DetokenizeBody.read(body, UnknownFields(ignored, served.config.strict_fields))
    served.resolve(fields.model)
    check_ids("tokens", fields.tokens, tokenizer)
    return {"prompt": tokenizer.decode(fields.tokens, skip_special_tokens=False)}


@router.on_json(
    "/tokenize",
    Operation(gives="The tokens, and how many they are.", body=TokenizeBody, answer=Tokens, statuses=(*JSON_BODY, 504)),
)
async def tokenize(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """The tokens of a text, or of a conversation with its pictures."""
    context = context_of(raw)
    service = context.service
    call = tokenize_call(body, context.served, ignored)
    async with service.deadline():
        media = call.prompt.media if isinstance(call.prompt, ChatPrompt) else MediaOptions()
        found = await service.read(
            lambda reader: tokenize_body(call, service.preparer, reader), media, context.scope(raw, None), ignored
        )
        return JSONResponse(found)


@router.on_json(
    "/detokenize", Operation(gives="Their text.", body=DetokenizeBody, answer=Detokenized, statuses=JSON_BODY)
)
async def detokenize(raw: HttpRequest, body: dict[str, Any], ignored: Ignored) -> Response:
    """The text of tokens, special ones by name."""
    context = context_of(raw)
    tokenizer = context.service.preparer.tokenizer
    found = await context.service.prepare(lambda: detokenize_body(body, context.served, tokenizer, ignored))
    return JSONResponse(found)
