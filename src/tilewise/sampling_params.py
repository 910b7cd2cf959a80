"""How to choose tokens, when to stop, and the form of an answer: options of a request, checked when they are made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tilewise.errors import InvalidField, InvalidRequest, UnknownOption

logger = logging.getLogger("tilewise")

COLDEST = 0.01
"""A temperature between 0 and this is raised to it: logits divided by less leave the range of numbers."""
MAX_N = 16384
"""Answers to one prompt; a server has a limit of its own."""
MAX_STOP_STRINGS = 64
MAX_STOP_TOKEN_IDS = 128
MAX_BAD_WORDS = 128
"""Also the most token sequences that they may come to."""


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """What form an answer has to have: exactly one of the first five. Names and meanings are vLLM's.

    An unknown keyword, none or several forms, or a value of the wrong type raises InvalidRequest. Whether a schema,
    pattern or grammar can be followed shows when a request with it is prepared.
    """

    json: str | dict[str, Any] | None = None
    """A JSON schema, as text or as a dict; keys come in the order of its `properties`."""
    regex: str | None = None
    """The whole answer matches it. Rust's syntax: no look-around, no back-references; `\\d` is 0 to 9."""
    choice: list[str] | tuple[str, ...] | None = None
    """The answer is one of these."""
    grammar: str | None = None
    """A context-free grammar: Lark (its first rule is `start`), or GBNF (`root ::= ...`)."""
    json_object: bool | None = None
    """True: any JSON object."""
    whitespace_pattern: str | None = None
    """Regex of the white space between the parts of JSON; default: a blank, or a line break with indentation."""
    disable_any_whitespace: bool = False
    """JSON without any."""

    def __new__(cls, **options: Any) -> StructuredOutputsParams:
        _refuse_unknown(cls, options)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.choice, list):
            object.__setattr__(self, "choice", tuple(self.choice))
        _check_values(self, _STRUCTURE_RULES)
        given = [name for name in _FORMS if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise InvalidRequest(
                "You can only use one kind of structured outputs constraint but multiple are specified: "
                f"{', '.join(given)}."
            )
        if not given:
            raise InvalidRequest(
                "You must use one kind of structured outputs constraint but none are specified: give one of "
                f"{', '.join(_FORMS)}."
            )
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise InvalidRequest("Give either whitespace_pattern or disable_any_whitespace, not both.")


_FORMS = ("json", "regex", "choice", "grammar", "json_object")
_STRUCTURE_RULES: tuple[tuple[str, str, Any], ...] = (
    ("json", "a JSON schema, as text or as a dict", lambda v: isinstance(v, (str, dict))),
    ("regex", "a string", lambda v: isinstance(v, str)),
    (
        "choice",
        "a list of strings that are not empty",
        lambda v: isinstance(v, tuple) and v and all(isinstance(choice, str) and choice for choice in v),
    ),
    ("grammar", "a string", lambda v: isinstance(v, str)),
    ("json_object", "true or false", lambda v: isinstance(v, bool)),
    ("whitespace_pattern", "a string", lambda v: isinstance(v, str)),
    ("disable_any_whitespace", "true or false", lambda v: isinstance(v, bool)),
)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, and when to stop. Names, defaults and meanings are vLLM's.

    An unknown keyword, or a value outside its range, raises InvalidRequest.
    """

    n: int = 1
    temperature: float = 1.0
    """0 = greedy: always the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 = all tokens."""
    min_p: float = 0.0
    seed: int | None = None
    """None or -1 = another draw every time."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    """Ids that the model does not have are accepted, as one program may serve several models; they stop nothing."""
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None = as many as the context holds."""
    min_tokens: int = 0
    logprobs: int | None = None
    """Also report this many likeliest tokens at each position, and the chosen one; -1 = all tokens."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens, which are then computed even if they are cached."""
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    """Added to the logits of these tokens."""
    allowed_token_ids: list[int] | tuple[int, ...] | None = None
    """Only these tokens may be chosen."""
    bad_words: list[str] | tuple[str, ...] | None = None
    """Texts that may not be generated: the last token of each is ruled out where it would complete it."""
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None
    """The form that the answer has to have. A whole answer ends where its form does, whatever `ignore_eos` and
    `min_tokens` say; one that `max_tokens` cuts short is not whole."""

    def __new__(cls, **options: Any) -> SamplingParams:
        _refuse_unknown(cls, options)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids", "allowed_token_ids", "bad_words"):
            self._set(name, _as_tuple(getattr(self, name)))
        self._set("logit_bias", _with_whole_keys(self.logit_bias))
        self._set("seed", None if self.seed == -1 else self.seed)
        self._check_values()
        if 0 < self.temperature < COLDEST:
            logger.warning("temperature %s is raised to %s", self.temperature, COLDEST)
            self._set("temperature", COLDEST)
        if self.n > 1 and self.temperature == 0:
            raise InvalidField("n", f"n must be 1 when using greedy sampling, got {self.n}.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidField(
                "min_tokens",
                f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, got {self.min_tokens}.",
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_values(self) -> None:
        _check_values(self, _SAMPLING_RULES)
        for name, most in _LONGEST_LISTS.items():
            count = len(getattr(self, name) or ())
            if count > most:
                raise InvalidField(name, f"{name} may have at most {most} entries, got {count}: send fewer.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.stop or ()  # type: ignore[return-value]  # a tuple since __post_init__

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.stop_token_ids or ()  # type: ignore[return-value]

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    @property
    def truncated(self) -> bool:
        """Whether some tokens may be too unlikely to be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def with_(self, **changes: Any) -> SamplingParams:
        return dataclasses.replace(self, **changes)


def _refuse_unknown(cls: type[SamplingParams | StructuredOutputsParams], options: dict[str, Any]) -> None:
    known = [spec.name for spec in dataclasses.fields(cls)]
    for name in options:
        if name not in known:
            raise UnknownOption.named(name, known, cls.__name__)


def _check_values(params: SamplingParams | StructuredOutputsParams, rules: tuple[tuple[str, str, Any], ...]) -> None:
    """Each rule is (name, what the value must be, whether it is that)."""
    for name, wanted, holds in rules:
        value = getattr(params, name)
        try:
            fine = holds(value) if value is not None else name in _MAY_BE_NONE
        except TypeError:
            fine = False
        if not fine:
            raise InvalidField(name, f"{name} must be {wanted}, got {value!r:.200}.")


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(dict.fromkeys(value)) if isinstance(value, (list, tuple, set)) else value


def _with_whole_keys(value: Any) -> Any:
    """JSON has no numbers for keys: "42" is the token 42. A copy, so that nobody changes it later."""
    if not isinstance(value, Mapping):
        return value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: bias for key, bias in value.items()}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _token_id(value: Any) -> bool:
    return _whole(value) and value >= 0


def _texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


_MAY_BE_NONE = {
    "seed",
    "stop",
    "stop_token_ids",
    "max_tokens",
    "logprobs",
    "prompt_logprobs",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "structured_outputs",
    *_FORMS,
    "whitespace_pattern",
}
_LONGEST_LISTS = {"stop": MAX_STOP_STRINGS, "stop_token_ids": MAX_STOP_TOKEN_IDS, "bad_words": MAX_BAD_WORDS}
_SAMPLING_RULES: tuple[tuple[str, str, Any], ...] = (
    ("n", f"a whole number from 1 to {MAX_N}", lambda v: _whole(v) and 1 <= v <= MAX_N),
    ("temperature", "a number >= 0", lambda v: 0 <= v < float("inf")),
    ("top_p", "in (0, 1]", lambda v: 0 < v <= 1),
    ("top_k", "0 or -1 (off) or a whole number >= 1", lambda v: _whole(v) and v >= -1),
    ("min_p", "in [0, 1]", lambda v: 0 <= v <= 1),
    ("seed", "a whole number", _whole),
    ("presence_penalty", "in [-2, 2]", lambda v: -2 <= v <= 2),
    ("frequency_penalty", "in [-2, 2]", lambda v: -2 <= v <= 2),
    ("repetition_penalty", "a number > 0", lambda v: 0 < v < float("inf")),
    ("stop", "strings that are not empty", _texts),
    ("stop_token_ids", "whole numbers >= 0", lambda v: isinstance(v, tuple) and all(map(_token_id, v))),
    ("max_tokens", "a whole number >= 1", lambda v: _whole(v) and v >= 1),
    ("min_tokens", "a whole number >= 0", lambda v: _whole(v) and v >= 0),
    ("logprobs", "-1 (all tokens) or a whole number >= 0", lambda v: _whole(v) and v >= -1),
    ("prompt_logprobs", "-1 (all tokens) or a whole number >= 0", lambda v: _whole(v) and v >= -1),
    (
        "logit_bias",
        "a dict from token ids to numbers in [-100, 100]",
        lambda v: isinstance(v, dict) and all(map(_token_id, v)) and all(-100 <= bias <= 100 for bias in v.values()),
    ),
    (
        "allowed_token_ids",
        "token ids, at least one",
        lambda v: isinstance(v, tuple) and bool(v) and all(map(_token_id, v)),
    ),
    ("bad_words", "strings that are not empty", _texts),
    ("structured_outputs", "StructuredOutputsParams(...)", lambda v: isinstance(v, StructuredOutputsParams)),
)
