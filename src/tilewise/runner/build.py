"""Building a runner from an EngineConfig: facts, resolved options, weights, caches."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilewise.config import EngineConfig
from tilewise.console import progress_bar
from tilewise.environment import Environment
from tilewise.errors import InvalidCheckpoint, InvalidConfig
from tilewise.host import Memory
from tilewise.models.config import ModelConfig, shared_out
from tilewise.models.load import TOWER_PARTS, Architecture, Watch
from tilewise.models.tile_encoder import TileEncoder
from tilewise.parallel.mesh import Mesh
from tilewise.parallel.ranks import broadcast
from tilewise.plan import Resolved, resolve
from tilewise.plan.memory import DeviceFacts, ModelFacts, largest, with_draft, with_vision_workers
from tilewise.platforms import current_platform
from tilewise.platforms.base import Platform
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Store
from tilewise.runner.activations import activation_bytes, token_bytes
from tilewise.runner.ranks import BuildDecisions, RankedRunner, Ranks, RankTask
from tilewise.runner.runner import BackgroundRunner, LocalRunner
from tilewise.runner.tile_store import ENCODER_PARTS, CappedFolder, EncodedTileFile, EncodedTileStore, model_key
from tilewise.runner.vision_workers import VisionTask, VisionWorkers
from tilewise.step import Limits, Runner
from tilewise.units import GIB
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.files import read_ahead, shard_files
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import check_method
from tilewise.weights.sources import Fingerprint

if TYPE_CHECKING:
    from tilewise.models.decoder import InternVL

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
    config: EngineConfig,
    model: Checkpoint,
    image_context_id: int,
    draft: Checkpoint | None = None,
    part: Memory | None = None,
    first_device: int = 0,
) -> tuple[Runner, Resolved]:
    """Load the model, and its draft model, and allocate what they run with; weights are fetched once they fit.

    One of several replicas gets a part of the machine's memory, and of its threads; its ranks take the GPUs from
    `first_device` on.
    """
    platform = current_platform(config.device, part, first_device)
    platform.check_ranks(config.layout.ranks)
    logger.info("device: %s", platform.device)
    if config.data_parallel_size > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // config.data_parallel_size))
    architecture = checked_architecture(model.folder, config, image_context_id)
    drafting = draft_architecture(draft.folder, architecture, config) if draft else None
    dtype = chosen_dtype(config, architecture, platform)
    check_kv_dtype(config, dtype)
    facts = largest_facts(config, architecture, dtype, platform.ops())
    if drafting:
        facts = with_draft(facts, largest_facts(config, drafting, dtype, platform.ops()))
    kept = tile_folder(config, facts.bytes_per_tile)
    ranks = Ranks(config, platform.backend, first_device) if config.layout.ranks > 1 else None
    with ranks.building() if ranks else nullcontext():
        resolved = _resolved(config, facts, platform, ranks)
        if config.load_format != "dummy":
            for checkpoint in filter(None, (model, draft)):
                checkpoint.fetch_weights()
        decisions, mesh = BuildDecisions(resolved, dtype), Mesh()
        if ranks:
            mesh = ranks.start(model.folder, draft.folder if draft else None)
            broadcast(decisions)
        own = RankBuilder(config, platform, decisions, mesh).build(architecture, drafting, kept)
        runner: Runner = RankedRunner(own, ranks) if ranks else own
    _log_room(resolved.limits)
    if resolved.overlap:
        if not platform.beside_host:  # else a launch returns while the device computes
            runner = BackgroundRunner(runner)
        logger.info("Asynchronous scheduling is enabled.")
    return runner, resolved


def _resolved(config: EngineConfig, facts: ModelFacts, platform: Platform, ranks: Ranks | None) -> Resolved:
    """Make every choice for the memory that there is, and log the reasons."""
    memory = Memory(platform.total_memory(), platform.free_memory())
    if ranks and platform.shared_memory:
        memory = ranks.share(memory)
    resolved = resolve(config, facts, device_facts(platform, memory), Environment.here())
    for name, reason in resolved.reasons.items():
        logger.info("%s: %s", name, reason)
    return resolved


def checked_architecture(folder: CheckpointFolder, config: EngineConfig, image_context_id: int) -> Architecture:
    """Return the model of a folder, as it is loaded. Raises InvalidCheckpoint; InvalidConfig for its quantisation."""
    check_method(folder, config.quantization)
    architecture = Architecture.of(folder, config.flash_router, config.quantization)
    if image_context_id >= architecture.config.decoder.vocab_size:
        raise InvalidCheckpoint(
            f"{folder.path}: <IMG_CONTEXT> has id {image_context_id}, the vocabulary only "
            f"{architecture.config.decoder.vocab_size} rows: tokenizer and config are of different models."
        )
    if config.enable_expert_parallel and architecture.config.decoder.experts is None:
        logger.info("enable_expert_parallel: this model has no experts, so that nothing changes")
    return architecture


def build_rank(task: RankTask, platform: Platform, decisions: BuildDecisions, mesh: Mesh) -> LocalRunner:
    """Build another rank's runner, as the first one has decided."""
    config = task.config
    architecture = Architecture.of(task.model, config.flash_router, config.quantization)
    drafting = draft_architecture(task.draft, architecture, config) if task.draft else None
    return RankBuilder(config, platform, decisions, mesh).build(architecture, drafting, None)


@dataclass(frozen=True)
class RankBuilder:
    """A builder that loads a rank's part of the model, and of its draft model, and allocates what it runs with."""

    config: EngineConfig
    platform: Platform
    decisions: BuildDecisions
    mesh: Mesh

    def build(
        self, architecture: Architecture, drafting: Architecture | None, kept: CappedFolder | None
    ) -> LocalRunner:
        """Build the rank's runner; `kept` is a folder for encoded tiles."""
        started = time.perf_counter()
        weights, resolved, dtype = Fingerprint(ENCODER_PARTS), self.decisions.resolved, self.decisions.dtype
        ops = self.platform.ops(resolved.limits.batch_invariant)
        with self._vision_workers(architecture) as workers:
            loaded = self._load(architecture, ops, weights if kept else None, encodes=workers is None)
            # Guesses decide nothing, so that their rounding is no matter.
            guessing = self._load(drafting, self.platform.ops()) if drafting else None
            digest = weights.digest() if workers is None else workers.wait_until_loaded()
            model = architecture.config
            store = tile_store(self.config, kept, digest, model, dtype, self.platform, ops) if kept else None
            logger.info("Loading weights took %.2f seconds", time.perf_counter() - started)
            capturer = self.platform.capturer if resolved.graphs else None
            runner = LocalRunner(
                *(loaded, resolved.limits, self.platform.device, store, guessing, capturer, self.mesh, workers),
                self.platform.streams(),
            )
            if not self.config.lazy_graphs:
                runner.capture_graphs()
            return runner

    @contextmanager
    def _vision_workers(self, architecture: Architecture) -> Iterator[VisionWorkers | None]:
        """Start vision workers, if any; they load while this process does, and end if it cannot."""
        count = self.config.vision_workers
        if not count:
            yield None
            return
        invariant = self.decisions.resolved.limits.batch_invariant
        workers = VisionWorkers(VisionTask(self.config, architecture.folder, self.decisions.dtype, invariant), count)
        try:
            yield workers
        except BaseException:
            workers.close()
            raise

    def _load(self, architecture: Architecture, ops: Ops, watch: Watch | None = None, encodes: bool = True) -> InternVL:
        config, dtype, device = self.config, self.decisions.dtype, self.platform.device
        context, store = self.decisions.resolved.limits.max_model_len, weight_store(ops, config.quantization)
        if config.load_format == "dummy":
            return architecture.build(architecture.noise(dtype, device), ops, context, self.mesh, watch, store, encodes)
        read_ahead(shard_files(architecture.folder.path), config.safetensors_load_strategy)
        size = architecture.count_parameters(ops) * dtype.itemsize
        shown = config.use_tqdm_on_load and size >= _WORTH_A_BAR and not self.mesh.rank
        with progress_bar("Loading weights", size, shown, of_bytes=True) as on_read:
            return architecture.load(dtype, ops, context, device, on_read, self.mesh, watch, store, encodes)


def draft_architecture(folder: CheckpointFolder, target: Architecture, config: EngineConfig) -> Architecture:
    """Return the draft model of a target. Raises InvalidConfig where they do not read the same tokens and tiles."""
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
    """Log the size of the KV cache in vLLM's words, which scripts look for."""
    tokens = (limits.num_blocks - 1) * limits.block_size
    logger.info("GPU KV cache size: %s tokens", f"{tokens:,}")
    length = limits.max_model_len
    logger.info("Maximum concurrency for %s tokens per request: %.2fx", f"{length:,}", tokens / length)


def largest_facts(config: EngineConfig, architecture: Architecture, dtype: torch.dtype, ops: Ops) -> ModelFacts:
    """Return sizes that are enough for every rank of a layout: those of the largest, part by part."""
    meshes = [Mesh.at(config.layout, number) for number in range(config.layout.ranks)]
    if config.layout.experts is None:  # ranks of a stage are alike, but for a few rows of the vocabulary
        meshes = meshes[:: config.layout.tensor]
    found = [model_facts(architecture, dtype, ops, config.quantization, config.quantised_kv, mesh) for mesh in meshes]
    if not config.vision_workers:
        return largest(found)
    parts = architecture.weigh(ops, dtype, weight_store(ops, config.quantization))
    return with_vision_workers(found[0], config.vision_workers, sum(parts[name].bytes for name in TOWER_PARTS))


def model_facts(
    architecture: Architecture,
    dtype: torch.dtype,
    ops: Ops,
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
    mesh: Mesh = Mesh(),
    weight_bytes: int | None = None,
) -> ModelFacts:
    """Return the sizes of a rank, by arithmetic and by building the model over shapes; no weight is read.

    `kv_cache_dtype` is int8 or fp8; None = that of activations. `weight_bytes`: where they were counted already.
    """
    store = weight_store(ops, quantization)
    decoder = shared_out(architecture.config.decoder, mesh)
    taken = partial(
        activation_bytes,
        replace(architecture.config, decoder=decoder),
        dtype.itemsize,
        ops,
        quantised_kv=kv_cache_dtype is not None,
    )
    return ModelFacts(
        trained_length=decoder.rope.trained_length,
        tokens_per_tile=architecture.config.tokens_per_tile,
        kv_bytes_per_token=token_bytes(decoder, kv_cache_dtype, dtype),
        bytes_per_tile=architecture.config.rows_per_page * decoder.hidden_size * dtype.itemsize,
        weight_bytes=architecture.count_bytes(ops, dtype, store, mesh) if weight_bytes is None else weight_bytes,
        tile_multiplications=architecture.config.vision.multiplications(architecture.config.tile_size),
        activation_bytes=taken,
        pool_bytes=taken,
        flash=architecture.config.flash,
    )


def load_encoder(
    architecture: Architecture, config: EngineConfig, dtype: torch.dtype, ops: Ops, device: torch.device
) -> tuple[TileEncoder, bytes]:
    """Load the encoder of tiles alone; return it, and a digest of its weights if tiles are kept on disk: hashing
    takes time, and only names there need it.
    """
    weights = Fingerprint(ENCODER_PARTS)
    watch = weights if config.encoder_cache_dir else None
    store, dummy = weight_store(ops, config.quantization), config.load_format == "dummy"
    return architecture.load_encoder(dtype, ops, device, watch, store, dummy), weights.digest()


def weight_store(ops: Ops, quantization: str | None) -> Store:
    """Return the function by which matrices are kept."""
    return ops.store_int8 if quantization == "int8" else ops.store


def device_facts(platform: Platform, memory: Memory | None = None) -> DeviceFacts:
    """Return the facts of a device; `memory` is what a rank has, where that is not all of it."""
    memory = memory or Memory(platform.total_memory(), platform.free_memory())
    return DeviceFacts(
        free_bytes=memory.free,
        total_bytes=memory.total,
        utilization=platform.utilization,
        beside_host=platform.beside_host,
        tiles_beside=platform.tiles_beside,
        captures_graphs=platform.capturer(platform.ops()) is not None,
        graph_sizes=platform.graph_sizes,
        tile_batches=platform.tile_batches,
        block_sizes=platform.block_sizes,
        block_size=platform.block_size,
        resize_kernels=platform.resize_kernels,
    )


def chosen_dtype(config: EngineConfig, architecture: Architecture, platform: Platform) -> torch.dtype:
    """Return the dtype of weights and activations. Raises InvalidConfig for an unknown one."""
    if config.dtype == "auto":
        return platform.default_dtype(architecture.dtype, architecture.count_parameters(platform.ops()))
    if config.dtype not in _DTYPES:
        raise InvalidConfig(f"dtype must be auto, {', '.join(_DTYPES)}, got {config.dtype!r}.")
    return _DTYPES[config.dtype]


def check_kv_dtype(config: EngineConfig, dtype: torch.dtype) -> None:
    """Raise InvalidConfig for floats in the KV cache that are not those of activations."""
    if _DTYPES.get(config.kv_cache_dtype, dtype) != dtype:
        ours = str(dtype).removeprefix("torch.")
        raise InvalidConfig(
            f"kv_cache_dtype={config.kv_cache_dtype!r} is not possible: the KV cache keeps {ours}, the dtype of "
            f"activations, or 8 bits: use auto, int8 or fp8, or dtype={config.kv_cache_dtype!r}."
        )


def tile_folder(config: EngineConfig, bytes_per_tile: int) -> CappedFolder | None:
    """Return the folder that keeps encoded tiles, if one is asked for. Raises InvalidConfig if it is of no use."""
    if config.encoder_cache_dir is None:
        return None
    room = int(config.encoder_cache_dir_gb * GIB)
    if room < 2 * bytes_per_tile:
        raise InvalidConfig(
            f"encoder_cache_dir_gb={config.encoder_cache_dir_gb} is {room} bytes, too few for tiles of "
            f"{bytes_per_tile} bytes: raise it."
        )
    return CappedFolder(Path(config.encoder_cache_dir).expanduser(), room)


def tile_store(
    config: EngineConfig,
    folder: CappedFolder,
    weights: bytes,
    model: ModelConfig,
    dtype: torch.dtype,
    platform: Platform,
    ops: Ops,
) -> EncodedTileStore:
    """Return the store of encoded tiles in a folder; `weights` is the digest of those by which tiles are encoded."""
    arithmetic = " ".join(filter(None, (platform.name, ops.arithmetic, config.quantization)))
    key = model_key(weights, model, dtype, arithmetic)
    logger.info("Encoded tiles are kept in %s", folder.path / key)
    form = EncodedTileFile(key, (model.rows_per_page, model.decoder.hidden_size), dtype)
    return EncodedTileStore(folder, form, config.check_numerics)
