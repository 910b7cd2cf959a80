"""Options of an engine and of a checkpoint for all requests: how media are read, what may be asked for, defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tilewise.errors import InvalidConfig, InvalidField, InvalidRequest, nearest
from tilewise.ignored import LOG, is_near_miss
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import MAX_BAD_WORDS, SamplingParams
from tilewise.types import TokenIds

if TYPE_CHECKING:
    from tilewise.config import EngineConfig
    from tilewise.inputs.media.tiling import Tiling


DEFAULTS_OF_MODEL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
"""Sampling options that a checkpoint's generation_config.json may set for requests that do not."""
MAX_BAD_WORD_TOKENS = 1024
"""Most tokens of all bad words of a request together."""
_CHARACTERS = 16 * MAX_BAD_WORD_TOKENS  # of all bad words together, before they are tokens


def structured(sampling: SamplingParams, config: EngineConfig) -> SamplingParams:
    """Return the sampling; its form of answers follows the engine's options where it does not say itself."""
    form = sampling.structured_outputs
    if form is None:
        return sampling
    changes: dict[str, Any] = {}
    if form.disable_additional_properties is None and not config.disable_additional_properties:
        changes["disable_additional_properties"] = False
    if config.disable_any_whitespace and form.whitespace_pattern is None:
        changes["disable_any_whitespace"] = True
    return sampling.with_(structured_outputs=dataclasses.replace(form, **changes)) if changes else sampling


def tilings(tiling: Tiling, pictures: int, config: EngineConfig) -> tuple[Tiling, Tiling]:
    """Return how each of a prompt's pictures is cut when there are so many, and how each frame of its videos.

    With `tile_budget=each`, every picture has max_dynamic_patch, as in the reference's inference; with `share`, the
    pictures of a request share it, as in training.
    """
    if config.tile_budget == "share" and pictures > 1:
        share = max(tiling.min_tiles, tiling.max_tiles // pictures)
        tiling = tiling.override({"max_dynamic_patch": share})
    return tiling, tiling.override({"dynamic_image_size": False})


def check_sampling(sampling: SamplingParams, tokenizer: Tokenizer, max_logprobs: int) -> None:
    """Raise InvalidRequest for ids beyond the vocabulary, and for more log-probabilities than the engine gives."""
    for kind, count in (("sample", sampling.logprobs), ("prompt", sampling.prompt_logprobs)):
        most = tokenizer.vocab_size if count is not None and count < 0 else count
        if count is not None and most is not None and 0 <= max_logprobs < most:
            raise InvalidRequest(
                f"Requested {kind} logprobs of {'all' if count < 0 else count}, which is greater than max allowed: "
                f"{max_logprobs}. Ask for fewer, or start the engine with a larger max_logprobs (-1 = no limit)."
            )
    for name in ("logit_bias", "allowed_token_ids", "logprob_token_ids"):
        check_ids(name, getattr(sampling, name) or (), tokenizer)


def check_ids(name: str, ids: Iterable[int], tokenizer: Tokenizer) -> None:
    """Raise InvalidField, naming the first id that the vocabulary does not have."""
    for token_id in ids:
        if not 0 <= token_id < tokenizer.vocab_size:
            raise InvalidField(
                name,
                f"{name}: token id {token_id} is out of vocabulary, which has {tokenizer.vocab_size} ids from 0 on.",
            )


def bad_word_ids(words: Iterable[str], tokenizer: Tokenizer) -> tuple[TokenIds, ...]:
    """Return token sequences of words at the start of a text and behind a space, which may be other tokens.

    vLLM leaves the second out where their lengths differ, and lets such words pass.
    """
    found: dict[TokenIds, None] = {}
    words = list(words)
    if (characters := sum(map(len, words))) > _CHARACTERS:
        raise InvalidRequest(
            f"bad_words have {characters} characters, the most are {_CHARACTERS}: send fewer or shorter ones."
        )
    for word in words:
        start = tuple(tokenizer.encode_raw(word.lstrip()))
        behind_space = tuple(tokenizer.encode_raw(" " + word.lstrip()))
        if not start:
            raise InvalidRequest(f"bad_words: {word!r} is no token at all: leave it out.")
        found[start] = None
        if behind_space[-len(start) :] != start:  # else it ends with the first, which stops it too
            found[behind_space] = None
    _check_size(found)
    return tuple(found)


def _check_size(sequences: Iterable[TokenIds]) -> None:
    lengths = [len(sequence) for sequence in sequences]
    if len(lengths) > MAX_BAD_WORDS or sum(lengths) > MAX_BAD_WORD_TOKENS:
        raise InvalidRequest(
            f"bad_words come to {len(lengths)} token sequences of {sum(lengths)} tokens, the most are "
            f"{MAX_BAD_WORDS} of {MAX_BAD_WORD_TOKENS}: send fewer or shorter ones."
        )


def sampling_defaults(
    generation_config: Mapping[str, Any], override: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the sampling options that a `generation_config.json` sets, with `--override-generation-config` on top.

    `do_sample: false` there makes nothing greedy, as in vLLM: files of released models say so by accident.
    """
    _check_override(override or {})
    merged = {**generation_config, **(override or {})}
    if "max_new_tokens" in merged:
        merged["max_tokens"] = merged["max_new_tokens"]
    found = {name: merged[name] for name in DEFAULTS_OF_MODEL if merged.get(name) is not None}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidConfig(f"generation_config: {name} must be a number, found {value!r:.80}.")
    return found


def _check_override(override: Mapping[str, Any]) -> None:
    known = (*DEFAULTS_OF_MODEL, "max_new_tokens")
    for name in override:
        if name not in known and is_near_miss(name, known):
            near = nearest(name.lower(), known)
            raise InvalidConfig(f"override_generation_config has no key {name!r}. Did you mean {near}?")
    others = [name for name in override if name not in known]
    LOG.take(dict.fromkeys(others, f"it sets {', '.join(known)} alone"), "override_generation_config")
