"""SamplingParams from the fields of a body, over the model's defaults."""

from __future__ import annotations

import dataclasses
from typing import Any

from tilewise.errors import InvalidField
from tilewise.sampling_params import SamplingParams
from tilewise.server.protocol.common import CompletionFields, ResponseFormat
from tilewise.server.served import ServedModel
from tilewise.structured_outputs import StructuredOutputsParams

_OTHERWISE = {"max_tokens", "structured_outputs", "truncate_prompt_tokens"}
_SAME_NAME = tuple(
    field.name
    for field in dataclasses.fields(SamplingParams)
    if field.name in CompletionFields.model_fields and field.name not in _OTHERWISE
)
"""Fields that are options of SamplingParams as they come."""
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
    params = SamplingParams(**options, logprobs=likeliest, structured_outputs=_one(structure, structure_of(body)))
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


def structure_of(body: CompletionFields) -> StructuredOutputsParams | None:
    """Return the form that response_format, structured_outputs or their older names ask for; at most one may."""
    asked = [response_structure(body.response_format), _structured_outputs(body), *_guided(body)]
    found = None
    for structure in asked:
        found = _one(found, structure)
    return found


def form_field(body: CompletionFields) -> str:
    """Return the name of the field that says what form the answer has."""
    if response_structure(body.response_format) is not None:
        return "response_format"
    names = (*(f"guided_{name}" for name in _GUIDED), "structural_tag")
    return next((name for name in names if getattr(body, name) is not None), "structured_outputs")


def _one(
    first: StructuredOutputsParams | None, second: StructuredOutputsParams | None
) -> StructuredOutputsParams | None:
    if first is not None and second is not None:
        raise InvalidField(
            "structured_outputs",
            "You can only use one kind of constraints for structured outputs: one of response_format, "
            "structured_outputs, and a tool_choice that asks for a call.",
        )
    return first or second


def response_structure(form: ResponseFormat | None) -> StructuredOutputsParams | None:
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


def _structured_outputs(body: CompletionFields) -> StructuredOutputsParams | None:
    given = body.structured_outputs
    if given is None:
        return None
    options = {name.rstrip("_"): value for name, value in given if value is not None}
    return StructuredOutputsParams(**options)


def _guided(body: CompletionFields) -> list[StructuredOutputsParams]:
    values = {name: getattr(body, f"guided_{name}") for name in _GUIDED} | {"structural_tag": body.structural_tag}
    spacing: dict[str, Any] = (
        {"whitespace_pattern": body.guided_whitespace_pattern} if body.guided_json is not None else {}
    )
    return [StructuredOutputsParams(**{name: value}, **spacing) for name, value in values.items() if value is not None]
