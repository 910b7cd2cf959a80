"""resolve(wishes, model, device) -> Resolved: every choice made once, each with its reason."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.step import FlashRule, Limits

GIB = 2**30


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model, in tokens and bytes, that memory planning needs."""

    trained_length: int
    tokens_per_tile: int
    kv_bytes_per_token: int
    bytes_per_tile: int
    weight_bytes: int
    flash: FlashRule | None = None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    free_bytes: int
    beside_host: bool = False
    """It computes while the host does something else."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the engine runs with. `reasons` has a line for each choice."""

    limits: Limits
    overlap: bool
    """Plan the next step while one runs."""
    reasons: dict[str, str]


def resolve(config: EngineConfig, model: ModelFacts, device: DeviceFacts) -> Resolved:
    """Raises InvalidConfig when the model or one sequence of full length cannot fit, naming what would."""
    reasons: dict[str, str] = {}
    max_model_len = _context(config, model, reasons)
    left = device.free_bytes - model.weight_bytes
    if left <= 0:
        raise InvalidConfig(
            f"The weights take {model.weight_bytes / GIB:.1f} GiB, {device.free_bytes / GIB:.1f} GiB are free: "
            "use a smaller model or a smaller dtype."
        )
    pages = _tile_pages(config, model, left, reasons)
    num_blocks = _blocks(config, model, max_model_len, left, reasons)
    limits = Limits(
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        num_blocks=num_blocks,
        tokens_per_tile=model.tokens_per_tile,
        tile_pages=pages,
        tile_budget=config.encode_budget,
        flash=model.flash,
        prefix_caching=config.enable_prefix_caching,
        priorities=config.scheduling_policy == "priority",
        batch_invariant=_batch_invariant(config, reasons),
    )
    if model.flash is not None:
        reasons["flash"] = f"tiles of {model.tokens_per_tile} or {model.flash.tokens} tokens, as the router chooses"
    return Resolved(limits, _overlap(config, device, reasons), reasons)


def _overlap(config: EngineConfig, device: DeviceFacts, reasons: dict[str, str]) -> bool:
    if config.async_scheduling is not None:
        return config.async_scheduling
    why = "the device computes beside the host" if device.beside_host else "planning would take turns with computing"
    reasons["async_scheduling"] = f"{'on' if device.beside_host else 'off'}: {why}"
    return device.beside_host


def _batch_invariant(config: EngineConfig, reasons: dict[str, str]) -> bool:
    why = "asked for" if config.batch_invariant else "VLLM_BATCH_INVARIANT"
    wanted = config.batch_invariant or os.environ.get("VLLM_BATCH_INVARIANT") == "1"
    if wanted:
        reasons["batch_invariant"] = f"on: {why}; decoding costs several times the work, prompts about twice"
    return wanted


def _context(config: EngineConfig, model: ModelFacts, reasons: dict[str, str]) -> int:
    asked = config.max_model_len
    if asked is None:
        reasons["max_model_len"] = f"{model.trained_length}: the length the model was trained for"
        return model.trained_length
    if asked > model.trained_length and os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
        raise InvalidConfig(
            f"max_model_len={asked} is longer than the {model.trained_length} tokens the model was trained for: "
            "lower it, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 and expect worse answers beyond."
        )
    reasons["max_model_len"] = f"{asked}: asked for"
    return asked


def _tile_pages(config: EngineConfig, model: ModelFacts, left: int, reasons: dict[str, str]) -> int:
    if config.encoder_cache_gb is not None:
        room, why = int(config.encoder_cache_gb * GIB), "asked for"
    else:
        room, why = min(GIB // 4, left // 8), "a quarter GiB, or an eighth of what is free"
    pages = min(room // model.bytes_per_tile, 65536)
    if pages < 1:
        raise InvalidConfig(
            f"The tile cache of {room} bytes holds no tile of {model.bytes_per_tile} bytes: raise encoder_cache_gb."
        )
    reasons["tile_pages"] = f"{pages} encoded tiles: {why}"
    return pages


def _blocks(config: EngineConfig, model: ModelFacts, max_model_len: int, left: int, reasons: dict[str, str]) -> int:
    space = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    if config.kv_cache_memory_bytes is not None:
        room, why = config.kv_cache_memory_bytes, "asked for"
    elif space:
        room, why = int(float(space) * GIB), "VLLM_CPU_KVCACHE_SPACE"
    else:
        room, why = min(4 * GIB, left // 2), "4 GiB, or half of what is free"
    block_bytes = model.kv_bytes_per_token * config.block_size
    blocks_a_sequence = math.ceil(max_model_len / config.block_size)
    blocks = min(room // block_bytes, blocks_a_sequence * config.max_num_seqs)
    if blocks < blocks_a_sequence:
        raise InvalidConfig(
            f"One sequence of max_model_len={max_model_len} needs {blocks_a_sequence * block_bytes} bytes of KV cache, "
            f"there are {room} ({why}): lower max_model_len to {blocks * config.block_size}, or give it more memory."
        )
    reasons["num_blocks"] = f"{blocks * config.block_size} tokens of KV cache: {why}, at most what max_num_seqs can use"
    return blocks + 1  # block 0 is the dummy
