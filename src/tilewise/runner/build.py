"""From wishes to a running runner: facts, resolution, weights, caches."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilewise.amounts import GIB
from tilewise.config import EngineConfig
from tilewise.errors import InvalidCheckpoint, InvalidConfig
from tilewise.models.config import ModelConfig
from tilewise.models.load import Architecture, Watch
from tilewise.parallel.mesh import Mesh
from tilewise.plan import DeviceFacts, ModelFacts, Resolved, resolve, with_draft
from tilewise.platforms import current_platform
from tilewise.platforms.base import Ops, Platform, Store
from tilewise.progress import progress_bar
from tilewise.runner.activations import activation_bytes
from tilewise.runner.background import BackgroundRunner
from tilewise.runner.capped_folder import CappedFolder
from tilewise.runner.kv_memory import token_bytes
from tilewise.runner.runner import LocalRunner
from tilewise.runner.tile_file import TileFile
from tilewise.runner.tile_key import ENCODER_PARTS, model_key
from tilewise.runner.tile_store import TileStore
from tilewise.step import Limits, Runner
from tilewise.weights.ahead import read_ahead
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.files import shard_files
from tilewise.weights.fingerprint import Fingerprint
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import check_method
from tilewise.weights.sources import RandomSource

if TYPE_CHECKING:
    from tilewise.models.internvl import InternVL

logger = logging.getLogger("tilewise")

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "float": torch.float32,
}
_WORTH_A_BAR = 200 * 2**20  # bytes


def build_runner(
    config: EngineConfig, model: Checkpoint, image_context_id: int, draft: Checkpoint | None = None
) -> tuple[Runner, Resolved]:
    """Load the model, and its draft model, and allocate what they run with; weights are fetched once they fit."""
    platform = current_platform()
    check_method(model.folder, config.quantization)
    architecture = Architecture.of(model.folder, config.flash_router, config.quantization)
    if image_context_id >= architecture.config.decoder.vocab_size:
        raise InvalidCheckpoint(
            f"{model.folder.path}: <IMG_CONTEXT> has id {image_context_id}, the vocabulary only "
            f"{architecture.config.decoder.vocab_size} rows: tokenizer and config are of different models."
        )
    dtype = _dtype(config, architecture, platform)
    _check_kv_dtype(config, dtype)
    facts = model_facts(architecture, dtype, platform.ops(), config.quantization, config.quantised_kv)
    drafting = draft_architecture(draft.folder, architecture, config) if draft else None
    if drafting:
        smaller = model_facts(drafting, dtype, platform.ops(), config.quantization, config.quantised_kv)
        facts = with_draft(facts, smaller)
    resolved = resolve(config, facts, device_facts(platform))
    for name, reason in resolved.reasons.items():
        logger.info("%s: %s", name, reason)
    kept = _tile_folder(config, facts)
    if config.load_format != "dummy":
        for checkpoint in filter(None, (model, draft)):
            checkpoint.fetch_weights()
    started = time.perf_counter()
    weights = Fingerprint(ENCODER_PARTS)
    ops = platform.ops(resolved.limits.batch_invariant)
    loaded = _load(config, architecture, dtype, platform, resolved, ops, weights if kept else None)
    # Guesses decide nothing, so that their rounding is no matter.
    guessing = _load(config, drafting, dtype, platform, resolved, platform.ops()) if drafting else None
    arithmetic = " ".join(filter(None, (platform.name, type(ops).__name__, config.quantization)))
    store = _tile_store(kept, weights, architecture.config, dtype, arithmetic) if kept else None
    logger.info("Loading weights took %.2f seconds", time.perf_counter() - started)
    _log_room(resolved.limits)
    capturer = platform.capturer if resolved.graphs else None
    runner: Runner = LocalRunner(loaded, resolved.limits, platform.device, store, guessing, capturer)
    if resolved.overlap:
        runner = BackgroundRunner(runner)
        logger.info("Asynchronous scheduling is enabled.")
    return runner, resolved


def draft_architecture(folder: CheckpointFolder, target: Architecture, config: EngineConfig) -> Architecture:
    """The draft model of a target. Raises InvalidConfig where they do not read the same tokens and tiles."""
    draft = Architecture.of(folder, config.flash_router, config.quantization)
    ours, theirs = (
        {
            "rows of the vocabulary": found.config.decoder.vocab_size,
            "tile size": found.config.tile_size,
            "tokens a tile": found.config.tokens_per_tile,
            "Flash router": found.config.flash,
        }
        for found in (target, draft)
    )
    for what, wanted in ours.items():
        if theirs[what] != wanted:
            raise InvalidConfig(
                f"speculative_config: {folder.path} cannot draft, its {what} is {theirs[what]} and the model's is "
                f"{wanted}: take a smaller model of the same generation."
            )
    return draft


def _log_room(limits: Limits) -> None:
    """In vLLM's words, which scripts look for."""
    tokens = (limits.num_blocks - 1) * limits.block_size
    logger.info("GPU KV cache size: %s tokens", f"{tokens:,}")
    length = limits.max_model_len
    logger.info("Maximum concurrency for %s tokens per request: %.2fx", f"{length:,}", tokens / length)


def model_facts(
    architecture: Architecture,
    dtype: torch.dtype,
    ops: Ops,
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
) -> ModelFacts:
    """Sizes by arithmetic and by building the model over shapes; no weight is read.

    `kv_cache_dtype` is int8 or fp8; None = that of activations.
    """
    decoder = architecture.config.decoder
    return ModelFacts(
        trained_length=decoder.rope.trained_length,
        tokens_per_tile=architecture.config.tokens_per_tile,
        kv_bytes_per_token=token_bytes(decoder, kv_cache_dtype, dtype),
        bytes_per_tile=architecture.config.rows_per_page * decoder.hidden_size * dtype.itemsize,
        weight_bytes=architecture.count_bytes(ops, dtype, _store(ops, quantization)),
        activation_bytes=partial(
            activation_bytes, architecture.config, dtype.itemsize, ops, quantised_kv=kv_cache_dtype is not None
        ),
        flash=architecture.config.flash,
    )


def _store(ops: Ops, quantization: str | None) -> Store:
    return ops.store_int8 if quantization == "int8" else ops.store


def device_facts(platform: Platform) -> DeviceFacts:
    return DeviceFacts(
        free_bytes=platform.free_memory(),
        total_bytes=platform.total_memory(),
        utilization=platform.utilization,
        beside_host=platform.beside_host,
        captures_graphs=platform.capturer(platform.ops()) is not None,
        tile_batches=platform.tile_batches,
        resize_kernels=platform.resize_kernels,
    )


def _dtype(config: EngineConfig, architecture: Architecture, platform: Platform) -> torch.dtype:
    if config.dtype == "auto":
        return platform.default_dtype(architecture.dtype, architecture.count_parameters(platform.ops()))
    if config.dtype not in _DTYPES:
        raise InvalidConfig(f"dtype must be auto, {', '.join(_DTYPES)}, got {config.dtype!r}.")
    return _DTYPES[config.dtype]


def _check_kv_dtype(config: EngineConfig, dtype: torch.dtype) -> None:
    """Raises InvalidConfig for floats in the KV cache that are not those of activations."""
    if _DTYPES.get(config.kv_cache_dtype, dtype) != dtype:
        ours = str(dtype).removeprefix("torch.")
        raise InvalidConfig(
            f"kv_cache_dtype={config.kv_cache_dtype!r} is not possible: the KV cache keeps {ours}, the dtype of "
            f"activations, or 8 bits: use auto, int8 or fp8, or dtype={config.kv_cache_dtype!r}."
        )


def _tile_folder(config: EngineConfig, facts: ModelFacts) -> CappedFolder | None:
    """The folder that keeps encoded tiles, if one is asked for. Raises InvalidConfig if it is of no use."""
    if config.encoder_cache_dir is None:
        return None
    room = int(config.encoder_cache_dir_gb * GIB)
    if room < 2 * facts.bytes_per_tile:
        raise InvalidConfig(
            f"encoder_cache_dir_gb={config.encoder_cache_dir_gb} is {room} bytes, too few for tiles of "
            f"{facts.bytes_per_tile} bytes: raise it."
        )
    return CappedFolder(Path(config.encoder_cache_dir).expanduser(), room)


def _tile_store(
    folder: CappedFolder, weights: Fingerprint, model: ModelConfig, dtype: torch.dtype, arithmetic: str
) -> TileStore:
    key = model_key(weights.digest(), model, dtype, arithmetic)
    logger.info("Encoded tiles are kept in %s", folder.path / key)
    return TileStore(folder, TileFile(key, (model.rows_per_page, model.decoder.hidden_size), dtype))


def _load(
    config: EngineConfig,
    architecture: Architecture,
    dtype: torch.dtype,
    platform: Platform,
    resolved: Resolved,
    ops: Ops,
    watch: Watch | None = None,
) -> InternVL:
    mesh, context = Mesh(size=config.tensor_parallel_size), resolved.limits.max_model_len
    store = _store(ops, config.quantization)
    if config.load_format == "dummy":
        return architecture.build(RandomSource(dtype, platform.device), ops, context, mesh, watch, store)
    read_ahead(shard_files(architecture.folder.path), config.safetensors_load_strategy)
    size = architecture.count_parameters(ops) * dtype.itemsize
    shown = config.use_tqdm_on_load and size >= _WORTH_A_BAR
    with progress_bar("Loading weights", size, shown, of_bytes=True) as on_read:
        return architecture.load(dtype, ops, context, platform.device, on_read, mesh, watch, store)
