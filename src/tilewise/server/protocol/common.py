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


def works(note: str, default: Any = None) -> Any:
    """Declare a field that does what `note` says, a sentence for users; with `...` as default it is required."""
    return Field(default, description=note)


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


class GenerationFields(Body):
    """The fields of all routes that generate: how tokens are chosen, and who is served first."""

    model: str | None = works("One of the served names; absent = the first of them.")
    temperature: float | None = works("0 = greedy.")
    top_p: float | None = works("In (0, 1].")
    frequency_penalty: float | None = works("From -2 to 2.")
    presence_penalty: float | None = works("From -2 to 2.")
    repetition_penalty: float | None = works("Above 0; 1 = off.")
    logit_bias: dict[str, float] | None = works("Token ids to numbers in [-100, 100].")
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


class PictureFields(Body):
    mm_processor_kwargs: dict[str, Any] | None = works("max_dynamic_patch and its like, for this request's pictures.")


class TilingFields(PictureFields):
    """The fields that say how pictures are cut into tiles."""

    max_dynamic_patch: int | None = works("The same as mm_processor_kwargs.max_dynamic_patch.")
    min_dynamic_patch: int | None = works("The same as mm_processor_kwargs.min_dynamic_patch.")


class PromptFields(PictureFields):
    chat_template_kwargs: dict[str, Any] | None = works(
        "enable_thinking; whatever else has no effect on the built-in templates."
    )
    media_io_kwargs: dict[str, Any] | None = works("video.num_frames and video.fps; image.rgba_background_color.")


class ConversationFields(PromptFields, TilingFields):
    """The fields that say how messages become a prompt."""

    add_generation_prompt: bool | None = works("false = the prompt ends with the last message.")
    continue_final_message: bool = works("Go on with the last message; needs add_generation_prompt false.", False)
    interleave_mm_strings: bool | None = works("true = pictures and texts keep their order; -hf models always keep it.")
    enable_thinking: bool | None = works("The same as chat_template_kwargs.enable_thinking.")
