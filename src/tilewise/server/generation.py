"""Requests that generate: how their tokens are chosen, which form the answer has, and how it is given back."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tilewise.errors import InvalidField, InvalidRequest, TooLong
from tilewise.inputs.prepare import Preparer
from tilewise.sampling_params import SamplingParams
from tilewise.server.body import Body, Given, works
from tilewise.server.request_id import RequestId
from tilewise.server.served import ServedModel
from tilewise.structured_outputs import StructuredOutputsParams
from tilewise.types import Request


def _check_biases(biases: Any) -> Any:
    """Raise ValueError for the first bias that is no number; pydantic would make a list of all of them."""
    for token, bias in biases.items() if isinstance(biases, dict) else ():
        try:
            good = math.isfinite(float(bias))
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(f"must be numbers, and that of token {token[:40]!r} is none")
    return biases


Biases = Annotated[dict[str, float], BeforeValidator(_check_biases)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
"""A seed of 64 bits, as in vLLM."""


class StreamOptions(Given):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Given):
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Given):
    """OpenAI's three types; llama.cpp's `schema` beside json_object; vLLM's structural_tag; LMDeploy's regex_schema."""

    type: Literal["text", "json_object", "json_schema", "structural_tag", "regex_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None
    regex_schema: str | None = None


class StructuredOutputs(Given):
    json_: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: dict[str, Any] | str | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


class GenerationFields(Body):
    """The fields of all routes that generate: how tokens are chosen, and who is served first."""

    model: str | None = works("One of the served names; absent = the first of them.")
    temperature: float | None = works("0 = greedy.")
    top_p: float | None = works("In (0, 1].")
    frequency_penalty: float | None = works("From -2 to 2.")
    presence_penalty: float | None = works("From -2 to 2.")
    repetition_penalty: float | None = works("Above 0; 1 = off.")
    logit_bias: Biases | None = works("Token ids to numbers in [-100, 100].")
    seed: Seed | None = works("The same seed gives the same answer.")
    stop: str | list[str] | None = works("One text or several that end an answer.")
    stop_token_ids: list[int] | None = works("Token ids that end an answer.")
    include_stop_str_in_output: bool | None = works("Whether the stop string is part of the answer.")
    ignore_eos: bool | None = works("Go on behind the model's own end.")
    top_k: int | None = works("0 or -1 = all tokens.")
    min_p: float | None = works("In [0, 1].")
    min_tokens: int | None = works("No end and no stop string counts before.")
    skip_special_tokens: bool | None = works("Whether control tokens of the answer stay hidden.")
    structured_outputs: StructuredOutputs | None = works(
        "json, regex, choice, grammar, json_object or structural_tag, and options of JSON."
    )
    stream: bool = works("Answer as server-sent events.", False)
    request_id: str | None = works("Ends the id of the answer, unless the header X-Request-Id does.")
    priority: int = works("Lower is served first, under --scheduling-policy priority.", 0)
    cache_salt: str | None = works("Cached prefixes are shared among requests of one salt alone.")


class CompletionFields(GenerationFields):
    """The fields of chat and text completions. Ranges are checked by SamplingParams."""

    max_tokens: int | None = works(
        "Most tokens of an answer; absent = what the context leaves (16 for text completions)."
    )
    n: int | None = works("Answers to one prompt.")
    stream_options: StreamOptions | None = works("include_usage, continuous_usage_stats.")
    bad_words: list[str] | None = works("Texts that are not generated.")
    allowed_token_ids: list[int] | None = works("Only these tokens are generated.")
    logprob_token_ids: list[int] | None = works(
        "Log-probabilities of these tokens, in place of the likeliest; needs logprobs."
    )
    prompt_logprobs: int | None = works("Log-probabilities of the prompt's tokens; not with stream.")
    truncate_prompt_tokens: int | None = works(
        "Keep the last tokens of a prompt without pictures; -1 = as many as fit."
    )
    truncation_side: Literal["left", "right"] | None = works(
        "left = truncate_prompt_tokens keeps the end of a prompt, right = its beginning."
    )
    response_format: ResponseFormat | None = works("text, json_object, json_schema, structural_tag or regex_schema.")
    guided_json: dict[str, Any] | str | None = works("Old name of structured_outputs.json.")
    guided_regex: str | None = works("Old name of structured_outputs.regex.")
    guided_choice: list[str] | None = works("Old name of structured_outputs.choice.")
    guided_grammar: str | None = works("Old name of structured_outputs.grammar.")
    guided_whitespace_pattern: str | None = works(
        "White space of guided_json: old name of structured_outputs.whitespace_pattern."
    )
    structural_tag: str | None = works("Old name of structured_outputs.structural_tag.")
    return_token_ids: bool = works("Token ids of prompt and answers.", False)
    return_tokens_as_token_ids: bool | None = works("Tokens of log-probabilities are written token_id:N.")


_TRANSLATED = {"max_tokens", "structured_outputs", "truncate_prompt_tokens"}
_SAME_NAME = tuple(
    field.name
    for field in dataclasses.fields(SamplingParams)
    if field.name in CompletionFields.model_fields and field.name not in _TRANSLATED
)
"""Fields that are options of SamplingParams as they come."""
LIGHT = 2048
"""Most characters of a prompt that is prepared on the event loop: they are tokenized sooner than a thread would be."""
_FORM = re.compile(r"^structured_outputs\.\w+")
_GUIDED = ("json", "regex", "choice", "grammar")


def sampling_of(
    body: CompletionFields,
    served: ServedModel,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    structure: StructuredOutputsParams | None = None,
) -> SamplingParams:
    """Return the SamplingParams of a body; `structure` is the form that a tool choice asks for.

    Raises InvalidField for values outside their ranges.
    """
    _check_streamed(body)
    if body.logprob_token_ids and logprobs is None:
        raise InvalidField("logprob_token_ids", "when using `logprob_token_ids`, `logprobs` must be set to true.")
    likeliest = None if body.logprob_token_ids else logprobs  # named tokens take their place
    options: dict[str, Any] = {"max_tokens": max_tokens, **served.sampling}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    for name in _SAME_NAME:
        value = getattr(body, name)
        if value is not None and (value != [] or name == "allowed_token_ids"):
            options[name] = value
    structures = [form for form in (structure, *(form for _, form in _forms(body))) if form is not None]
    params = SamplingParams(**options, logprobs=likeliest, structured_outputs=_only(structures))
    if params.n > served.max_answers:
        raise InvalidField(
            "n",
            f"n={params.n} is above this server's limit of {served.max_answers} answers to a prompt: send several "
            f"requests, or start it with a larger --max-num-seqs or with VLLM_MAX_N_SEQUENCES={params.n}.",
        )
    return params


def _check_streamed(body: CompletionFields) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidField("stream_options", "Stream options can only be defined when `stream=True`.")
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidField("prompt_logprobs", "`prompt_logprobs` are not available when `stream=True`.")


def _forms(body: CompletionFields) -> Iterator[tuple[str, StructuredOutputsParams]]:
    """Yield the forms of an answer that a body asks for, each with the field that asks for it."""
    if (form := _response_structure(body.response_format)) is not None:
        yield "response_format", form
    spacing: dict[str, Any] = {} if body.guided_json is None else {"whitespace_pattern": body.guided_whitespace_pattern}
    for name in _GUIDED:
        if (value := getattr(body, f"guided_{name}")) is not None:
            yield f"guided_{name}", StructuredOutputsParams(**{name: value}, **spacing)
    if body.structural_tag is not None:
        yield "structural_tag", StructuredOutputsParams(structural_tag=body.structural_tag, **spacing)
    if body.structured_outputs is not None:
        options = {name.rstrip("_"): value for name, value in body.structured_outputs if value is not None}
        yield "structured_outputs", StructuredOutputsParams(**options)


def form_field(body: CompletionFields) -> str:
    """Return the name of the field that says what form the answer has."""
    return next((name for name, _ in _forms(body)), "structured_outputs")


def _only(structures: Sequence[StructuredOutputsParams]) -> StructuredOutputsParams | None:
    if len(structures) > 1:
        raise InvalidField(
            "structured_outputs",
            "You can only use one kind of constraints for structured outputs: one of response_format, "
            "structured_outputs, and a tool_choice that asks for a call.",
        )
    return structures[0] if structures else None


def _response_structure(form: ResponseFormat | None) -> StructuredOutputsParams | None:
    if form is None or form.type == "text":
        return None
    if form.type == "regex_schema":
        return StructuredOutputsParams(regex=_part(form, "regex_schema", form.regex_schema))
    if form.type == "structural_tag":
        tag = form.model_dump(include={"structures", "triggers", "format"}, exclude_none=True)
        return StructuredOutputsParams(structural_tag=tag)
    schema = form.schema_ if form.json_schema is None else form.json_schema.schema_
    if form.type == "json_object" and schema is None:
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=_part(form, "json_schema.schema", schema))


def _part(form: ResponseFormat, name: str, value: Any) -> Any:
    if value is None:
        raise InvalidField("response_format", f"response_format of type {form.type} needs {name}.")
    return value


def strict_schema(body: CompletionFields) -> dict[str, Any] | None:
    """Return the schema that an answer is checked against when it is whole, if `strict: true` asks for that."""
    form = body.response_format.json_schema if body.response_format else None
    return form.schema_ if form and form.strict else None


@dataclass(frozen=True, kw_only=True)
class ReplyOptions:
    """The form in which a request's answers are given back."""

    id: str
    model: str
    created: int
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    explain: bool = False
    boxes: bool = False
    tokens_as_ids: bool = False
    """True if tokens of log-probabilities are written `token_id:N`."""


def reply_of(fields: CompletionFields, served: ServedModel, prefix: str, name: RequestId) -> ReplyOptions:
    options, as_ids = fields.stream_options or StreamOptions(), fields.return_tokens_as_token_ids
    usage = fields.stream and (served.config.enable_force_include_usage or bool(options.include_usage))
    return ReplyOptions(
        id=prefix + name.or_of_body(fields.request_id),
        model=served.resolve(fields.model),
        created=int(time.time()),
        stream=fields.stream,
        include_usage=usage,
        continuous_usage=usage and (served.config.enable_force_include_usage or bool(options.continuous_usage_stats)),
        token_ids=fields.return_token_ids,
        tokens_as_ids=served.config.return_tokens_as_token_ids if as_ids is None else as_ids,
    )


def check_routing(fields: CompletionFields, served: ServedModel) -> None:
    if fields.priority and not served.priorities:
        raise InvalidField(
            "priority",
            f"priority={fields.priority} has no effect under --scheduling-policy fcfs: start with priority, or 0.",
        )
    if fields.cache_salt == "":
        raise InvalidField("cache_salt", "cache_salt must be a text that is not empty.")


@dataclass(frozen=True, kw_only=True)
class GenerationCall:
    """A request for answers, but for its prompt, with nothing of HTTP or JSON left in it."""

    reply: ReplyOptions
    sampling: SamplingParams
    form_field: str = "structured_outputs"
    """The field of the body that says what form the answer has; errors name it."""
    priority: int = 0
    cache_salt: str | None = None
    max_tokens: int | None = None
    """Most tokens of an answer, if the body names them: they have to fit into the context behind the prompt."""

    def routed(self, request: Request, preparer: Preparer) -> Request:
        """Return the engine's request with its priority and cache salt.

        Raises TooLong when the tokens that the body names do not fit; the engine would end the answer early.
        """
        prompt, wanted = len(request.prompt_ids), self.max_tokens
        if wanted is not None and prompt + wanted > preparer.max_model_len:
            raise TooLong(
                "Leave max_tokens out for as many as fit.",
                prompt_tokens=prompt,
                limit=preparer.max_model_len,
                output_tokens=wanted,
            )
        return request.with_(priority=self.priority, cache_salt=self.cache_salt)


@contextmanager
def naming_form(field: str) -> Iterator[None]:
    """Make errors about an answer's form name `field`, where the body asks for it, in place of `structured_outputs`."""
    try:
        yield
    except InvalidRequest as error:
        if type(error) is not InvalidRequest or not str(error).startswith("structured_outputs."):
            raise
        text = str(error) if field == "structured_outputs" else _FORM.sub(lambda _: field, str(error))
        raise InvalidField(field, text) from None
