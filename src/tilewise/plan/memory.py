"""Shares out a device's memory: weights, activations, tile pages, and the KV cache with what is left.

Nothing is measured by trying: weights are counted from shapes, activations by the formula that the model's facts bring.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tilewise.config import EngineConfig
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.step import FlashRule
from tilewise.units import GIB, in_bytes

MAX_TILE_PAGES = 65536


@dataclass(frozen=True, slots=True)
class LargestStep:
    """The most that one step may have to compute."""

    tokens: int = 1
    sequences: int = 1
    rows: int = 0
    """Places at which a token is chosen: one a sequence, and one more for each guess."""
    context: int = 1
    """Tokens of the longest sequence."""
    logprobs: int = 0
    """Alternatives that a token may be reported with; -1 = all tokens."""
    tiles: int = 0
    """Tiles that are encoded at a time."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model, in tokens and bytes, that memory planning needs."""

    trained_length: int
    tokens_per_tile: int
    kv_bytes_per_token: int
    bytes_per_tile: int
    weight_bytes: int
    tile_multiplications: int
    """Numbers that the tower multiplies for one tile."""
    activation_bytes: Callable[[LargestStep], int]
    """Bytes that a step takes while it runs."""
    pool_bytes: Callable[[LargestStep], int]
    """Bytes that graphs of steps up to this one keep: each model's share one memory, and no two models one."""
    flash: FlashRule | None = None


def with_draft(model: ModelFacts, draft: ModelFacts) -> ModelFacts:
    """Return what a model and its draft model take together.

    A draft model has keys, values and rows of its own for every token and tile. The two compute in turns, so the larger
    activations are enough for both.
    """
    return replace(
        model,
        kv_bytes_per_token=model.kv_bytes_per_token + draft.kv_bytes_per_token,
        bytes_per_tile=model.bytes_per_tile + draft.bytes_per_tile,
        weight_bytes=model.weight_bytes + draft.weight_bytes,
        activation_bytes=lambda step: max(model.activation_bytes(step), draft.activation_bytes(step)),
        pool_bytes=lambda step: model.pool_bytes(step) + draft.pool_bytes(step),
    )


def with_vision_workers(model: ModelFacts, workers: int, tower_bytes: int) -> ModelFacts:
    """Return what a model and its vision workers take together.

    Each worker has a tower, the model itself none; workers encode while the model decodes, so activations add up.
    """

    def activation_bytes(step: LargestStep) -> int:
        encoding = model.activation_bytes(LargestStep(rows=1, tiles=step.tiles))
        return model.activation_bytes(step) + workers * encoding

    weights = model.weight_bytes + (workers - 1) * tower_bytes
    return replace(model, weight_bytes=weights, activation_bytes=activation_bytes)


def largest(ranks: Sequence[ModelFacts]) -> ModelFacts:
    """Return what is enough for each of several ranks, which all have the same number of blocks and pages."""
    if len(ranks) == 1:
        return ranks[0]
    return replace(
        ranks[0],
        kv_bytes_per_token=max(rank.kv_bytes_per_token for rank in ranks),
        weight_bytes=max(rank.weight_bytes for rank in ranks),
        activation_bytes=lambda step: max(rank.activation_bytes(step) for rank in ranks),
    )


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    free_bytes: int
    total_bytes: int
    utilization: float | None = None
    """Share of the total that an engine takes unless told otherwise; None = the KV cache gets half of what is left, and
    4 GiB at most."""
    beside_host: bool = False
    """True if it computes while the host does something else."""
    captures_graphs: bool = False
    tiles_beside: bool = False
    """True if it encodes tiles beside steps, in batches that are captured where steps are."""
    graph_sizes: tuple[int, ...] = ()
    """Numbers of sequences of captured steps, to which others are padded; empty = steps are captured as they come."""
    tile_batches: tuple[int, ...] = (1,)
    """Numbers of tiles that it encodes at a time, the largest first."""
    block_sizes: range = range(1, 2**16)
    """Numbers of tokens that a KV block may have."""
    block_size: int = 16
    """Tokens of a KV block unless told otherwise."""
    resize_kernels: str | None = None
    """A shared object of this host that resizes pictures (`tilewise.resize`)."""


@dataclass(frozen=True, slots=True)
class MemoryAmount:
    """An amount of memory, and where it comes from, in words."""

    bytes: int
    why: str


@dataclass(frozen=True)
class MemoryPlan:
    """A plan of a device's memory for sequences of at most `context` tokens."""

    config: EngineConfig
    model: ModelFacts
    device: DeviceFacts
    context: int
    environment: Environment = Environment()

    @property
    def utilization(self) -> float | None:
        asked = self.config.gpu_memory_utilization
        return self.device.utilization if asked is None else asked

    @property
    def allowance(self) -> MemoryAmount:
        """All that this engine may take, weights included."""
        free, share = self.device.free_bytes, self.utilization
        if share is None or self.device.total_bytes * share > free:
            return MemoryAmount(free, "free")
        return MemoryAmount(int(self.device.total_bytes * share), f"allowed by gpu_memory_utilization={share:g}")

    @cached_property
    def activations(self) -> int:
        config = self.config
        guesses = config.speculation.num_speculative_tokens if config.speculation else 0
        rows = min(config.max_num_seqs * (1 + guesses), config.max_num_batched_tokens)
        sizes = config.max_num_batched_tokens, config.max_num_seqs, rows, self.context, config.max_logprobs
        step, batch = LargestStep(*sizes), self._tile_batch
        if not self.tiles_beside:
            return self.model.activation_bytes(replace(step, tiles=batch.tiles))
        # Captured, a batch has its memory in `graphs`.
        return self.model.activation_bytes(step) + (0 if self.graph_sizes else self.model.activation_bytes(batch))

    @property
    def tiles_beside(self) -> bool:
        """True if a batch of tiles is encoded while a step runs."""
        return self.device.tiles_beside and self.config.layout.ranks == 1 and not self.config.vision_workers

    @property
    def tiles_in_step(self) -> str:
        """A phrase that says what activations are for beside a step; empty where graphs have the memory of tiles."""
        if self.tiles_beside:
            return "" if self.graph_sizes else ", and a batch of tiles"
        return ", or a batch of tiles"

    @property
    def _tile_batch(self) -> LargestStep:
        return LargestStep(tiles=max(self.device.tile_batches))

    @cached_property
    def graph_sizes(self) -> tuple[int, ...]:
        """Numbers of sequences for which steps are captured ahead, up to the first size that holds all sequences."""
        if not self.captures:
            return ()
        most = min(self.config.max_graph_size, self.config.max_num_seqs)
        sizes = [size for size in self.device.graph_sizes if size <= self.config.max_graph_size]
        return tuple(size for place, size in enumerate(sizes) if not place or sizes[place - 1] < most)

    @property
    def captures(self) -> bool:
        """True if steps are captured. Ranks wait for one another inside a pass, which no graph of one host can hold."""
        return self.device.captures_graphs and not self.config.enforce_eager and self.config.layout.ranks == 1

    @cached_property
    def graphs(self) -> int:
        """Bytes that captured graphs keep for activations between their kernels.

        They are those of the largest step, which all graphs of a model's steps share, and those of the largest batch of
        tiles, where these are captured.
        """
        if not self.graph_sizes:
            return 0
        size = self.graph_sizes[-1]
        batches = self.model.pool_bytes(self._tile_batch) if self.tiles_beside else 0
        return self.model.pool_bytes(LargestStep(size, size)) + batches

    @property
    def left(self) -> int:
        """Bytes that are left for the caches; below 0 if not even the rest fits."""
        return self.allowance.bytes - self.model.weight_bytes - self.activations - self.graphs

    @property
    def tile_room(self) -> MemoryAmount:
        if self.config.encoder_cache_gb is not None:
            return MemoryAmount(int(self.config.encoder_cache_gb * GIB), "asked for")
        return MemoryAmount(min(GIB // 4, max(0, self.left) // 8), "a quarter GiB, or an eighth of what is left")

    @property
    def tile_pages(self) -> int:
        return min(self.tile_room.bytes // self.model.bytes_per_tile, MAX_TILE_PAGES)

    @property
    def kv_room(self) -> MemoryAmount:
        """Memory of the KV cache. An explicit size wins over a share, as in vLLM, and may be more than what is left."""
        config, gib = self.config, self.environment.kv_cache_gib
        if config.num_gpu_blocks_override is not None:
            return MemoryAmount(config.num_gpu_blocks_override * self.block_bytes, "num_gpu_blocks_override")
        if config.kv_cache_memory_bytes is not None:
            beaten = "" if config.gpu_memory_utilization is None else ", which wins over gpu_memory_utilization"
            return MemoryAmount(config.kv_cache_memory_bytes, f"kv_cache_memory_bytes{beaten}")
        if gib is not None and config.gpu_memory_utilization is None:
            return MemoryAmount(int(gib * GIB), Environment.kv_cache_gib.name)
        left = max(0, self.left)
        if self.utilization is None:
            return MemoryAmount(min(4 * GIB, left // 2), "4 GiB, or half of what is left")
        rest = max(0, left - self.tile_pages * self.model.bytes_per_tile)
        return MemoryAmount(rest, f"what is left of what is {self.allowance.why}")

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""
        return self.device.block_size if self.config.block_size is None else self.config.block_size

    @property
    def block_bytes(self) -> int:
        return self.model.kv_bytes_per_token * self.block_size

    @property
    def blocks_a_sequence(self) -> int:
        return math.ceil(self.context / self.block_size)

    @property
    def num_blocks(self) -> int:
        """KV blocks, at most what sequences can use, without the dummy."""
        if self.config.num_gpu_blocks_override is not None:
            return self.config.num_gpu_blocks_override
        return min(self.kv_room.bytes // self.block_bytes, self.blocks_a_sequence * self.config.max_num_seqs)

    @property
    def fits(self) -> bool:
        return self.left > 0 and self.tile_pages > 0 and self.num_blocks >= self.blocks_a_sequence

    def longest(self, limit: int) -> int:
        """Return the most tokens of a sequence, up to `limit`; below that whole blocks, and 0 if not even one fits."""
        if self._with(limit).fits:
            return limit
        size = self.block_size
        lengths = range(size, limit, size)
        # The length at index i has i + 1 blocks: so the index of the first that does not fit is the number that do.
        too_long = bisect.bisect_left(lengths, True, key=lambda length: not self._with(length).fits)
        return too_long * size

    def _with(self, context: int) -> MemoryPlan:
        return replace(self, context=context)

    def check(self) -> None:
        """Raise InvalidConfig for what does not fit, naming what would."""
        weights, allowance, sizes = self.model.weight_bytes, self.allowance, self.device.block_sizes
        if self.block_size not in sizes:
            raise InvalidConfig(
                f"block_size={self.block_size} is not possible on this device, whose KV blocks have "
                f"{', '.join(map(str, sizes))} tokens: leave it out, or choose one of these."
            )
        if weights >= allowance.bytes:
            raise InvalidConfig(
                f"The weights take {in_bytes(weights)}, {in_bytes(allowance.bytes)} are {allowance.why}: "
                "use a smaller model or a smaller dtype."
            )
        if self.left <= 0:
            raise InvalidConfig(
                f"Beside weights of {in_bytes(weights)}, one step takes {in_bytes(self.activations)}, and "
                f"{in_bytes(allowance.bytes)} are {allowance.why}: lower max_num_batched_tokens, max_num_seqs, or "
                f"max_model_len{self._what_fits()}."
            )
        if self.tile_pages < 1:
            raise InvalidConfig(
                f"The tile cache of {self.tile_room.bytes} bytes holds no tile of {self.model.bytes_per_tile} bytes: "
                "raise encoder_cache_gb."
            )
        if not self.fits:
            needed, room = self.blocks_a_sequence * self.block_bytes, self.kv_room
            raise InvalidConfig(
                f"One sequence of max_model_len={self.context} needs {in_bytes(needed)} of KV cache, there are "
                f"{in_bytes(room.bytes)} ({room.why}): lower max_model_len{self._what_fits()}, or give it more memory."
            )

    def _what_fits(self) -> str:
        longest = self.longest(self.context)
        return f" to {longest}" if longest else ""

    def reasons(self) -> dict[str, str]:
        """Return a line for each part of the memory."""
        pages, tokens = self.tile_pages, self.num_blocks * self.block_size
        kept = f" in {self.config.quantised_kv}" if self.config.quantised_kv else ""
        cap = "" if self.config.num_gpu_blocks_override else ", at most what max_num_seqs can use"
        return {
            "weights": in_bytes(self.model.weight_bytes),
            "activations": f"{in_bytes(self.activations)} for a step of {self.config.max_num_batched_tokens} tokens"
            f"{self.tiles_in_step}",
            "tile_pages": f"{in_bytes(pages * self.model.bytes_per_tile)}, {pages} encoded tiles: {self.tile_room.why}",
            "num_blocks": f"{in_bytes(self.num_blocks * self.block_bytes)}, {tokens} tokens of KV cache{kept}: "
            f"{self.kv_room.why}{cap}",
        }
