"""SpeculativeConfig: how answers are guessed ahead. Keys and meanings are vLLM's `speculative_config`."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tilewise.errors import InvalidConfig, UnknownOption, did_you_mean

Method = Literal["ngram", "draft_model"]
_MOST = {"num_speculative_tokens": 64, "prompt_lookup_max": 32, "prompt_lookup_min": 32}
"""The largest number of each option that is one."""


@dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """Options of speculative decoding. Raises InvalidConfig for an impossible value, or one of no use to its method."""

    method: Method | None = None
    """ngram: what followed the same few tokens before; draft_model: a smaller model. Default: what `model` asks for."""
    num_speculative_tokens: int
    """Most guesses at a time."""
    model: str | None = None
    """The draft model: a folder or a hub id, of the same tokenizer and tiling."""
    revision: str | None = None
    """Branch, tag or commit of the draft model on the hub."""
    prompt_lookup_max: int | None = None
    """Longest sequence of tokens that is looked up, 5 by default."""
    prompt_lookup_min: int | None = None
    """Shortest sequence of tokens that is looked up, 2 by default."""

    @classmethod
    def of(cls, options: dict[str, Any]) -> SpeculativeConfig:
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UnknownOption.named(name, known, "speculative_config")
        if "num_speculative_tokens" not in options:
            raise InvalidConfig(
                'speculative_config needs num_speculative_tokens, such as {"num_speculative_tokens": 5}.'
            )
        if options.get("model") in ("ngram", "[ngram]"):
            options = {**options, "method": "ngram", "model": None}
        if options.get("method") is None:
            options = {**options, "method": "draft_model" if options.get("model") else "ngram"}
        return cls(**options)

    def __post_init__(self) -> None:
        methods = get_args(Method)
        if self.method not in methods:
            hint = did_you_mean(str(self.method), methods)
            raise InvalidConfig(
                f"speculative_config: method must be one of {', '.join(methods)}, got {self.method!r}.{hint}"
            )
        for name in ("model", "revision"):
            if not isinstance(value := getattr(self, name), (str, os.PathLike, type(None))):
                raise InvalidConfig(f"speculative_config: {name} must be a text, got {value!r:.200}.")
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and not (type(value) is int and 1 <= value <= most):
                raise InvalidConfig(
                    f"speculative_config: {name} must be a whole number from 1 to {most}, got {value!r}."
                )
        shortest, longest = self.lookup
        if shortest > longest:
            raise InvalidConfig(
                f"speculative_config: prompt_lookup_min={shortest} is above prompt_lookup_max={longest}: lower it."
            )
        self._refuse_what_has_no_use()

    def _refuse_what_has_no_use(self) -> None:
        drafting = self.method == "draft_model"
        if drafting and not self.model:
            raise InvalidConfig("speculative_config: method draft_model needs a model: give a folder or a hub id.")
        useless = ("prompt_lookup_max", "prompt_lookup_min") if drafting else ("model", "revision")
        for name in useless:
            if getattr(self, name) is not None:
                raise InvalidConfig(f"speculative_config: {name} has no use with method {self.method}: leave it out.")

    @property
    def ngram(self) -> tuple[int, int] | None:
        """`lookup` of the method ngram; None of a draft model."""
        return self.lookup if self.method == "ngram" else None

    @property
    def lookup(self) -> tuple[int, int]:
        """Shortest and longest n-gram; if one alone is given, the other is its default or the nearest that fits."""
        longest = self.prompt_lookup_max or max(5, self.prompt_lookup_min or 0)
        return self.prompt_lookup_min or min(2, longest), longest
