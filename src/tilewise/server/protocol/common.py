"""Types that several bodies share, and the handling of nulls and unknown keys in their objects."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field

from tilewise.server.fields.field import FieldTable, UnknownFields

_FORMS = ("response_format", "structured_outputs")
"""Objects of which every key says what the answer has to look like: an unknown one is always refused."""

Models = tuple[type[BaseModel], ...]


def known_keys(model: type[BaseModel], name: str, value: Any, unknown: UnknownFields) -> Any:
    """Return the value of a field of `model` without the nulls and the unknown keys of objects in it.

    The keys are named in `unknown`. Only objects that have a type of their own are looked into: a schema's keys are
    its own affair. Raises InvalidField for a key that was meant to be another.
    """
    return _pruned(_models_of(model, name), name, value, unknown)


def _pruned(models: Models, path: str, value: Any, unknown: UnknownFields) -> Any:
    if not models:
        return value
    if isinstance(value, list):
        return [_pruned(models, path, item, unknown) for item in value]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    known = {key: name for model in models for key, name in _keys(model).items()}
    for key, inner in value.items():
        if key in known:
            if inner is not None:
                kept[key] = _pruned(_all_of(models, known[key]), f"{path}.{key}", inner, unknown)
        elif inner is not None and path in _FORMS:
            raise unknown.refusal(f"{path}.{key}", known, path)
        elif inner is not None or unknown.strict:
            unknown.take(f"{path}.{key}", known, path)
    return kept


@cache
def _keys(model: type[BaseModel]) -> dict[str, str]:
    """Return, by the fields' names in JSON, their names in the class."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def _all_of(models: Models, name: str) -> Models:
    return tuple(found for model in models for found in _models_of(model, name))


@cache
def _models_of(model: type[BaseModel], name: str) -> Models:
    """Return the classes of objects that a field may hold, in lists too; none, where any keys may come."""
    field = model.model_fields.get(name)
    return () if field is None else tuple(dict.fromkeys(_classes(field.annotation)))


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)


class Strict(BaseModel):
    """Types as JSON has them: no text that looks like a number, no number for a boolean, no unknown key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Given(BaseModel):
    """An object of a request body. Scalars are read as pydantic's lax mode reads them (`10.0`, `"0.5"`), as in vLLM."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
"""A seed of 64 bits, as in vLLM."""


class Body(Given):
    """A request body: its table is asked first which fields may come at all."""

    @classmethod
    def read(cls, body: dict[str, Any], table: FieldTable, unknown: UnknownFields) -> Self:
        """Read a body. Raises InvalidField for a field that cannot be had, ValidationError for a wrong type."""
        effective = table.effective(body, unknown)
        return cls.model_validate({name: known_keys(cls, name, effective[name], unknown) for name in effective})


class StreamOptions(Given):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Given):
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = None
    strict: bool | None = None

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))


class ResponseFormat(Given):
    """OpenAI's three types; llama.cpp's `schema` beside json_object; vLLM's structural_tag; LMDeploy's regex_schema."""

    type: Literal["text", "json_object", "json_schema", "structural_tag", "regex_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None
    regex_schema: str | None = None

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))


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

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))


class Sampled(Body):
    """Fields of `fields/sampling.py`. Ranges are checked by SamplingParams."""

    model: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    structural_tag: str | None = None
    priority: int = 0
    cache_salt: str | None = None
    request_id: str | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool | None = None
