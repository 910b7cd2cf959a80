"""Options of a request: how to choose tokens, when to stop, and the form of an answer; checked when they are set."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from tilewise import vllm_modules
from tilewise.errors import InvalidField, InvalidRequest, UnknownOption
from tilewise.foreign.keywords import ForeignKeyword, no_effect, refused, take_all
from tilewise.ignored import LOG, Ignored
from tilewise.units import to_python

logger = logging.getLogger("tilewise")
if not TYPE_CHECKING:
    __getattr__ = vllm_modules.finder_of(__name__, {"BeamSearchParams": "tilewise.beam"}, ImportError)
Rule = tuple[str, Callable[[Any], Any]]
"""A rule for a value: what it must be, in words, and a function that says whether it is."""

COLDEST = 0.01
"""A temperature between 0 and this is raised to it: logits divided by less leave the range of numbers."""
MAX_N = 16384
"""Most answers to one prompt; a server has a limit of its own."""
MAX_STOP_STRINGS = 64
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROB_TOKEN_IDS = 128
MAX_BAD_WORDS = 128
"""Most texts of `bad_words`, and most token sequences that they may come to."""


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """The form that an answer has to have: exactly one of the first six fields. Names and meanings are vLLM's.

    An unknown keyword, none or several forms, or a value of the wrong type raises InvalidRequest. Whether a schema,
    pattern or grammar can be followed shows when a request with it is prepared.
    """

    json: str | dict[str, Any] | None = None
    """A JSON schema, as text or as a dict; keys come in the order of its `properties`."""
    regex: str | None = None
    """The whole answer matches it. Rust's syntax; `\\d` is 0 to 9. Word boundaries, look-around and back-references
    cannot be followed: they are left out, and named."""
    choice: list[str] | tuple[str, ...] | None = None
    """The answer is one of these."""
    grammar: str | None = None
    """A context-free grammar: Lark (its first rule is `start`), or GBNF (`root ::= ...`)."""
    json_object: bool | None = None
    """True: any JSON object."""
    structural_tag: str | dict[str, Any] | None = None
    """Free text with tags whose contents have a form: `structures` and `triggers`, or `format`; as text or a dict."""
    whitespace_pattern: str | None = None
    """Regex of the white space that may stand between two parts of JSON; one blank by default."""
    disable_any_whitespace: bool = False
    """True: JSON has no white space."""
    disable_additional_properties: bool | None = None
    """False: objects that list their properties may have others, too, unless the schema says `additionalProperties:
    false`. None and True: they may not, unless it says that they may. What a schema combines counts as one object."""

    def __new__(cls, **options: Any) -> StructuredOutputsParams:
        _refuse_unknown(cls, options)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(self.choice, list):
            object.__setattr__(self, "choice", tuple(self.choice))
        for name in _STRUCTURE_RULES:
            _check(name, getattr(self, name), _STRUCTURE_RULES)
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


_FORMS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_STRUCTURE_RULES: dict[str, Rule] = {
    "json": ("a JSON schema, as text or as a dict", lambda v: isinstance(v, (str, dict))),
    "regex": ("a string", lambda v: isinstance(v, str)),
    "choice": (
        "a list of strings that are not empty",
        lambda v: isinstance(v, tuple) and v and all(isinstance(choice, str) and choice for choice in v),
    ),
    "grammar": ("a string", lambda v: isinstance(v, str)),
    "json_object": ("true or false", lambda v: isinstance(v, bool)),
    "structural_tag": ("a structural tag, as text or as a dict", lambda v: isinstance(v, (str, dict))),
    "whitespace_pattern": ("a string", lambda v: isinstance(v, str)),
    "disable_any_whitespace": ("true or false", lambda v: isinstance(v, bool)),
    "disable_additional_properties": ("true or false", lambda v: isinstance(v, bool)),
}


class GuidedDecodingParams(StructuredOutputsParams):
    """The name of StructuredOutputsParams in vLLM before 0.11; which library follows a form was a field of it."""

    def __new__(cls, **options: Any) -> StructuredOutputsParams:  # type: ignore[misc]
        return super().__new__(cls, **{name: options[name] for name in options if name not in _BACKEND})

    def __init__(self, **options: Any) -> None:
        ignored = Ignored()
        take_all({name: options.pop(name) for name in [*options] if name in _BACKEND}, _BACKEND, ignored)
        super().__init__(**options)
        LOG.take(ignored.reasons, "GuidedDecodingParams")

    @classmethod
    def from_optional(cls, **options: Any) -> GuidedDecodingParams | None:
        """Make one of the options that are not None; return None if these name no form."""
        given = {name: value for name, value in options.items() if value is not None}
        return cls(**given) if given.keys() & set(_FORMS) else None


_ONE_LIBRARY = "one library follows all forms"
_BACKEND = {
    "backend": no_effect(_ONE_LIBRARY, "auto"),
    "backend_was_auto": no_effect(_ONE_LIBRARY, False),
    "disable_fallback": no_effect(_ONE_LIBRARY, False),
}


class RequestOutputKind(Enum):
    """The content of each result of AsyncLLM's stream. LLM gives whole answers whatever it says."""

    CUMULATIVE = 0
    """The whole answer so far."""
    DELTA = 1
    """The new part of the answer."""
    FINAL_ONLY = 2
    """A single result, when the answer is whole."""


@dataclass(init=False)
class SamplingParams:
    """Options of a request: how to choose tokens, and when to stop. Names, defaults and meanings are vLLM's.

    Every keyword of vLLM is taken: what has no effect is logged once, what would change answers and is not there raises
    InvalidField. An unknown keyword, or a value outside its range, raises InvalidRequest, at an assignment as well. A
    request has a copy of its own, so that what is assigned later changes nothing of it.
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
    """Number of likeliest tokens to report at each position, beside the chosen one; -1 = all tokens."""
    logprob_token_ids: list[int] | tuple[int, ...] | None = None
    """Tokens to report at each position in place of the likeliest, beside the chosen one."""
    prompt_logprobs: int | None = None
    """Number as in `logprobs` for the prompt's tokens, which are then computed even if they are cached."""
    logit_bias: Mapping[int, float] | None = None
    """Numbers that are added to the logits of tokens, by id."""
    allowed_token_ids: list[int] | tuple[int, ...] | None = None
    """Only these tokens may be chosen."""
    bad_words: list[str] | tuple[str, ...] | None = None
    """Texts that may not be generated: the last token of each is ruled out where it would complete it."""
    skip_special_tokens: bool = True
    detokenize: bool = True
    """False = results have token ids alone, and their texts are empty."""
    truncate_prompt_tokens: int | None = None
    """Number of a prompt's last tokens to keep, -1 = as many as fit; a prompt with pictures cannot be cut."""
    skip_reading_prefix_cache: bool | None = None
    """True = the whole prompt is computed, even if a beginning of it is cached."""
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    """Tokens that AsyncLLM gathers before it gives out a result; the first and the last come at once."""
    structured_outputs: StructuredOutputsParams | None = None
    """The form that the answer has to have. A whole answer ends where its form does, whatever `ignore_eos` and
    `min_tokens` say; one that `max_tokens` cuts short is not whole."""

    def __init__(self, n: int = 1, **options: Any) -> None:
        ignored = Ignored()
        fields = dataclasses.fields(self)
        options = _renamed({"n": n, **options})
        if to_python(options.get("best_of")) == options["n"]:
            del options["best_of"]
        for name in [name for name in options if name in FOREIGN]:
            FOREIGN[name].take(name, options.pop(name), ignored)
        for name in options:
            if name not in self.__dataclass_fields__:
                raise UnknownOption.named(name, [field.name for field in fields], "SamplingParams")
        for field in fields:
            setattr(self, field.name, options.get(field.name, field.default))
        self._check_together()
        LOG.take(ignored.reasons, "SamplingParams")

    def __setattr__(self, name: str, value: Any) -> None:
        name = _ALIASES.get(name, name)
        if name in FOREIGN:
            ignored = Ignored()
            FOREIGN[name].take(name, value, ignored)
            LOG.take(ignored.reasons, "SamplingParams")
        elif name not in self.__dataclass_fields__:
            raise UnknownOption.named(name, self.__dataclass_fields__, "SamplingParams")
        else:
            object.__setattr__(self, name, _checked(name, value))

    def __getattr__(self, name: str) -> Any:
        """Keywords that are no options here read as vLLM's defaults."""
        if name in _ALIASES:
            return getattr(self, _ALIASES[name])
        if name in FOREIGN:
            return next(iter(FOREIGN[name].defaults), None)
        raise AttributeError(f"SamplingParams has no attribute {name!r}.")

    def _check_together(self) -> None:
        if self.logprob_token_ids and self.logprobs not in (None, len(self.logprob_token_ids)):
            raise InvalidField(
                "logprob_token_ids",
                "When both logprobs and logprob_token_ids are set, logprobs must equal the number of ids, "
                f"{len(self.logprob_token_ids)}, got {self.logprobs}: leave one of them out."
            )  # fmt: skip
        if self.n > 1 and self.temperature == 0:
            raise InvalidField("n", f"n must be 1 when using greedy sampling, got {self.n}.")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidField(
                "min_tokens",
                f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, got {self.min_tokens}.",
            )
        if self.stop and not self.detokenize:
            raise InvalidField("stop", "stop strings are looked for in text: set detokenize=True, or stop_token_ids.")

    @classmethod
    def from_optional(cls, **options: Any) -> SamplingParams:
        """Make one, with None for every default but that of max_tokens."""
        return cls(**{name: value for name, value in options.items() if value is not None or name == "max_tokens"})

    def clone(self) -> SamplingParams:
        """Return a copy, checked as a whole."""
        return self.with_()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.stop or ()  # type: ignore[return-value]  # a tuple since it was set

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.stop_token_ids or ()  # type: ignore[return-value]

    @property
    def scored_tokens(self) -> int | None:
        """Number of tokens with known scores that are reported at each position, -1 = all; None = no scores."""
        return -1 if self.logprob_token_ids else self.logprobs

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def reports(self) -> bool:
        """True if tokens are given with log-probabilities."""
        return self.logprobs is not None or bool(self.logprob_token_ids)

    @property
    def penalised(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    @property
    def truncated(self) -> bool:
        """True if some tokens may be too unlikely to be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def with_(self, **changes: Any) -> SamplingParams:
        return dataclasses.replace(self, **changes)


_ALIASES = {"guided_decoding": "structured_outputs"}
_NO_FUNCTIONS = (
    "Functions of a caller do not run in the engine: use logit_bias, allowed_token_ids, bad_words or a form."
)
_NO_SCORES = "Ask for logprobs or prompt_logprobs; the likeliest tokens are reported."
FOREIGN: dict[str, ForeignKeyword] = {
    "best_of": refused("All n answers are returned: raise n, and choose by cumulative_logprob."),
    "use_beam_search": refused("Call LLM.beam_search.", False),
    "length_penalty": refused("Call LLM.beam_search, which has one.", 1.0, 1),
    "early_stopping": refused("Call LLM.beam_search.", False),
    "logits_processors": refused(_NO_FUNCTIONS),
    "spaces_between_special_tokens": no_effect("text comes as the tokens spell it", True),
    "flat_logprobs": refused("Log-probabilities are lists of dicts: leave it out.", False),
    "prompt_logprob_token_ids": refused(_NO_SCORES),
    "prompt_logprob_start": refused("Ask for prompt_logprobs, and leave the first out.", None, 0),
    "thinking_token_budget": refused("Thinking has no budget of its own: set max_tokens."),
    "repetition_detection": refused("Use repetition_penalty or frequency_penalty."),
    "watermarking": refused("There is no watermark: leave it out.", None, False),
    "routed_experts_prompt_start": refused("Which experts computed a token is not reported.", 0),
    "trace_decode_token_ids": refused("Answers cannot be replayed: send them as prompts, and ask for prompt_logprobs."),
    "skip_clone": no_effect("a request always has a copy of its own", False),
    "output_text_buffer_length": no_effect("text is held back for as long as a stop string may begin in it", 0),
    "extra_args": no_effect("nothing here reads it", None, {}),
}
"""Keywords of vLLM 0.10 to 0.33, and older ones, that are no fields."""


def _renamed(options: dict[str, Any]) -> dict[str, Any]:
    for old, name in _ALIASES.items():
        value = options.pop(old, None)
        if value is not None and options.get(name) is not None:
            raise InvalidField(old, f"{old} is another name of {name}: give one of them.")
        if value is not None:
            options[name] = value
    return options


def _refuse_unknown(cls: type[StructuredOutputsParams], options: dict[str, Any]) -> None:
    known = [spec.name for spec in dataclasses.fields(cls)]
    for name in options:
        if name not in known:
            raise UnknownOption.named(name, known, cls.__name__)


def _checked(name: str, value: Any) -> Any:
    """Return the value of a field as it is kept. Raises InvalidField."""
    value = _PREPARED.get(name, to_python)(value)
    _check(name, value, _SAMPLING_RULES)
    count = len(value or ()) if name in _LONGEST_LISTS else 0
    if count > _LONGEST_LISTS.get(name, count):
        raise InvalidField(name, f"{name} may have at most {_LONGEST_LISTS[name]} entries, got {count}: send fewer.")
    return value


def _check(name: str, value: Any, rules: Mapping[str, Rule]) -> None:
    """Raise InvalidField for a value that breaks the rule of its name."""
    wanted, holds = rules[name]
    try:
        fine = holds(value) if value is not None else name in _MAY_BE_NONE
    except TypeError:
        fine = False
    if not fine:
        raise InvalidField(name, f"{name} must be {wanted}, got {value!r:.200}.")


def _as_tuple(value: Any) -> Any:
    value = to_python(value)
    if isinstance(value, str):
        return (value,)
    return tuple(dict.fromkeys(map(to_python, value))) if isinstance(value, (list, tuple, set, frozenset)) else value


def _with_whole_keys(value: Any) -> Any:
    """Return a copy, which nobody changes later. JSON has no numbers for keys, so that "42" is the token 42."""
    if not isinstance(value, Mapping):
        return value
    return {
        int(key) if isinstance(key, str) and key.isdecimal() else to_python(key): to_python(bias)
        for key, bias in value.items()
    }


def _seed(value: Any) -> Any:
    value = to_python(value)
    return None if value == -1 and value is not True else value


def _warm(value: Any) -> Any:
    value = to_python(value)
    if isinstance(value, (int, float)) and 0 < value < COLDEST:
        logger.warning("temperature %s is raised to %s", value, COLDEST)
        return COLDEST
    return value


def _kind(value: Any) -> Any:
    """Return the output kind that is given as a member or by its number."""
    return next((kind for kind in RequestOutputKind if to_python(value) in (kind, kind.value)), value)


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
    "logprob_token_ids",
    "prompt_logprobs",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "structured_outputs",
    "truncate_prompt_tokens",
    "skip_reading_prefix_cache",
    "stream_interval",
    *_FORMS,
    "whitespace_pattern",
    "disable_additional_properties",
}
_LONGEST_LISTS = {
    "stop": MAX_STOP_STRINGS,
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "bad_words": MAX_BAD_WORDS,
    "logprob_token_ids": MAX_LOGPROB_TOKEN_IDS,
}
_SAMPLING_RULES: dict[str, Rule] = {
    "n": (f"a whole number from 1 to {MAX_N}", lambda v: _whole(v) and 1 <= v <= MAX_N),
    "temperature": ("a number >= 0", lambda v: 0 <= v < float("inf")),
    "top_p": ("in (0, 1]", lambda v: 0 < v <= 1),
    "top_k": ("0 or -1 (off) or a whole number >= 1", lambda v: _whole(v) and v >= -1),
    "min_p": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "seed": ("a whole number", _whole),
    "presence_penalty": ("in [-2, 2]", lambda v: -2 <= v <= 2),
    "frequency_penalty": ("in [-2, 2]", lambda v: -2 <= v <= 2),
    "repetition_penalty": ("a number > 0", lambda v: 0 < v < float("inf")),
    "stop": ("strings that are not empty", _texts),
    "stop_token_ids": ("whole numbers >= 0", lambda v: isinstance(v, tuple) and all(map(_token_id, v))),
    "max_tokens": ("a whole number >= 1", lambda v: _whole(v) and v >= 1),
    "min_tokens": ("a whole number >= 0", lambda v: _whole(v) and v >= 0),
    "logprobs": ("-1 (all tokens) or a whole number >= 0", lambda v: _whole(v) and v >= -1),
    "logprob_token_ids": ("token ids", lambda v: isinstance(v, tuple) and all(map(_token_id, v))),
    "prompt_logprobs": ("-1 (all tokens) or a whole number >= 0", lambda v: _whole(v) and v >= -1),
    "logit_bias": (
        "a dict from token ids to numbers in [-100, 100]",
        lambda v: isinstance(v, dict) and all(map(_token_id, v)) and all(-100 <= bias <= 100 for bias in v.values()),
    ),
    "allowed_token_ids": (
        "token ids, at least one",
        lambda v: isinstance(v, tuple) and bool(v) and all(map(_token_id, v)),
    ),
    "bad_words": ("strings that are not empty", _texts),
    "structured_outputs": ("StructuredOutputsParams(...)", lambda v: isinstance(v, StructuredOutputsParams)),
    "include_stop_str_in_output": ("true or false", lambda v: isinstance(v, bool)),
    "ignore_eos": ("true or false", lambda v: isinstance(v, bool)),
    "skip_special_tokens": ("true or false", lambda v: isinstance(v, bool)),
    "detokenize": ("true or false", lambda v: isinstance(v, bool)),
    "truncate_prompt_tokens": ("-1 (what fits) or a whole number >= 1", lambda v: _whole(v) and (v == -1 or v >= 1)),
    "skip_reading_prefix_cache": ("true or false", lambda v: isinstance(v, bool)),
    "output_kind": ("a RequestOutputKind", lambda v: isinstance(v, RequestOutputKind)),
    "stream_interval": ("a whole number >= 1", lambda v: _whole(v) and v >= 1),
}
_PREPARED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("stop", "stop_token_ids", "allowed_token_ids", "bad_words", "logprob_token_ids"), _as_tuple),
    "logit_bias": _with_whole_keys,
    "seed": _seed,
    "temperature": _warm,
    "output_kind": _kind,
    "structured_outputs": lambda value: value,
}
