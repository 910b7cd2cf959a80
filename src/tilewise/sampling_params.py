"""SamplingParams: options of a request, how to choose tokens and when to stop; checked when they are set."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from tilewise.errors import InvalidField, UnknownOption
from tilewise.foreign.keywords import ForeignKeyword, no_effect, refused
from tilewise.foreign.modules import finder_of
from tilewise.ignored import LOG, Ignored
from tilewise.option import MANY, checked, switch, texts
from tilewise.structured_outputs import StructuredOutputsParams
from tilewise.units import to_python

logger = logging.getLogger("tilewise")
_HOMES = {
    "BeamSearchParams": "tilewise.entrypoints.beam_search",
    "GuidedDecodingParams": "tilewise.structured_outputs",
}
if not TYPE_CHECKING:
    __getattr__ = finder_of(__name__, _HOMES, ImportError)
COLDEST = 0.01
"""A temperature between 0 and this is raised to it: logits divided by less leave the range of numbers."""
MAX_N = 16384
"""Most answers to one prompt; a server has a limit of its own."""
MAX_STOP_STRINGS = 64
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROB_TOKEN_IDS = 128
MAX_BAD_WORDS = 128
"""Most texts of `bad_words`, and most token sequences that they may come to."""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_from(least: int) -> Callable[[Any], bool]:
    return lambda value: _whole(value) and least <= value <= MANY


def _ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_whole_from(0), value))


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


def _biases(value: Any) -> bool:
    return isinstance(value, dict) and _ids(tuple(value)) and all(-100 <= bias <= 100 for bias in value.values())


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

    n: int = checked(1, f"a whole number from 1 to {MAX_N}", lambda value: _whole(value) and 1 <= value <= MAX_N)
    temperature: float = checked(1.0, "a number >= 0", lambda value: 0 <= value < float("inf"), prepare=_warm)
    """0 = greedy: always the likeliest token."""
    top_p: float = checked(1.0, "in (0, 1]", lambda value: 0 < value <= 1)
    top_k: int = checked(0, f"0 or -1 (off) or a whole number from 1 to {MANY}", _whole_from(-1))
    """0 or -1 = all tokens."""
    min_p: float = checked(0.0, "in [0, 1]", lambda value: 0 <= value <= 1)
    seed: int | None = checked(None, "a whole number", _whole, prepare=_seed)
    """None or -1 = another draw every time."""
    presence_penalty: float = checked(0.0, "in [-2, 2]", lambda value: -2 <= value <= 2)
    frequency_penalty: float = checked(0.0, "in [-2, 2]", lambda value: -2 <= value <= 2)
    repetition_penalty: float = checked(1.0, "a number > 0", lambda value: 0 < value < float("inf"))
    stop: str | list[str] | tuple[str, ...] | None = checked(
        None, "strings that are not empty", texts, prepare=_as_tuple, most=MAX_STOP_STRINGS
    )
    stop_token_ids: list[int] | tuple[int, ...] | None = checked(
        None, "whole numbers >= 0", _ids, prepare=_as_tuple, most=MAX_STOP_TOKEN_IDS
    )
    """Ids that the model does not have are accepted, as one program may serve several models; they stop nothing."""
    include_stop_str_in_output: bool = switch()
    ignore_eos: bool = switch()
    max_tokens: int | None = checked(16, "a whole number >= 1", _whole_from(1), optional=True)
    """None = as many as the context holds."""
    min_tokens: int = checked(0, "a whole number >= 0", _whole_from(0))
    logprobs: int | None = checked(None, "-1 (all tokens) or a whole number >= 0", _whole_from(-1))
    """Number of likeliest tokens to report at each position, beside the chosen one; -1 = all tokens."""
    logprob_token_ids: list[int] | tuple[int, ...] | None = checked(
        None, "token ids", _ids, prepare=_as_tuple, most=MAX_LOGPROB_TOKEN_IDS
    )
    """Tokens to report at each position in place of the likeliest, beside the chosen one."""
    prompt_logprobs: int | None = checked(None, "-1 (all tokens) or a whole number >= 0", _whole_from(-1))
    """Number as in `logprobs` for the prompt's tokens, which are then computed even if they are cached."""
    logit_bias: Mapping[int, float] | None = checked(
        None, "a dict from token ids to numbers in [-100, 100]", _biases, prepare=_with_whole_keys
    )
    """Numbers that are added to the logits of tokens, by id."""
    allowed_token_ids: list[int] | tuple[int, ...] | None = checked(
        None, "token ids, at least one", lambda value: value and _ids(value), prepare=_as_tuple
    )
    """Only these tokens may be chosen."""
    bad_words: list[str] | tuple[str, ...] | None = checked(
        None, "strings that are not empty", texts, prepare=_as_tuple, most=MAX_BAD_WORDS
    )
    """Texts that may not be generated: the last token of each is ruled out where it would complete it."""
    skip_special_tokens: bool = switch(True)
    detokenize: bool = switch(True)
    """False = results have token ids alone, and their texts are empty."""
    truncate_prompt_tokens: int | None = checked(
        None,
        "-1 (what fits) or a whole number >= 1",
        lambda value: _whole(value) and (value == -1 or value >= 1),
    )
    """Number of a prompt's last tokens to keep, -1 = as many as fit; a prompt with pictures cannot be cut."""
    skip_reading_prefix_cache: bool | None = switch(None)
    """True = the whole prompt is computed, even if a beginning of it is cached."""
    output_kind: RequestOutputKind = checked(
        RequestOutputKind.CUMULATIVE,
        "a RequestOutputKind",
        lambda value: isinstance(value, RequestOutputKind),
        prepare=_kind,
    )
    stream_interval: int | None = checked(None, "a whole number >= 1", _whole_from(1))
    """Tokens that AsyncLLM gathers before it gives out a result; the first and the last come at once."""
    structured_outputs: StructuredOutputsParams | None = checked(
        None, "StructuredOutputsParams(...)", lambda value: isinstance(value, StructuredOutputsParams)
    )
    """The form that the answer has to have. A whole answer ends where its form does, whatever `ignore_eos` and
    `min_tokens` say; one that `max_tokens` cuts short is not whole."""

    def __init__(self, n: int = 1, **options: Any) -> None:
        options = _renamed({"n": n, **options})
        if "best_of" in options and to_python(options["best_of"]) == options["n"]:
            del options["best_of"]
        for name, value in ({field.name: field.default for field in dataclasses.fields(self)} | options).items():
            setattr(self, name, value)
        self._check_together()

    def __setattr__(self, name: str, value: Any) -> None:
        name = _ALIASES.get(name, name)
        if name in FOREIGN:
            ignored = Ignored()
            FOREIGN[name].take(name, value, ignored)
            LOG.take(ignored.reasons, "SamplingParams")
        elif name not in self.__dataclass_fields__:
            raise UnknownOption.named(name, self.__dataclass_fields__, "SamplingParams")
        else:
            object.__setattr__(self, name, self.__dataclass_fields__[name].metadata["rule"].kept(name, value))

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
        """Return a copy with other values, checked as a whole."""
        found = copy.copy(self)  # values were checked when they were set, but for a dict that was changed since
        for name, value in ({"logit_bias": self.logit_bias} | changes).items():
            setattr(found, name, value)
        found._check_together()
        return found


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
