"""Cases of attention: over pages, within tiles, and the rotation that writes keys and values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from benchmarks.gpu.case import DTYPE, Call, Case, Noise, bytes_of, copied, numbers
from torch import Tensor

from tilewise.plan.floors import StageWork
from tilewise.platforms.kv_cache import KV_DTYPES, LayerCache, PagedLayout, QuantisedCache, bytes_per_head, quantise
from tilewise.platforms.ops import Ops
from tilewise.twin.specs import TinySpec

BLOCK = 16
Sequences = Sequence[tuple[int, int]]
"""Each pair is a sequence: its tokens before this step, and those of this step."""


@dataclass(frozen=True)
class Paged:
    """These are a case's options of `paged_attention`."""

    name: str
    sequences: Sequences
    kv: str = "auto"
    window: int | None = None
    sinks: bool = False


def cases(model: str, spec: TinySpec, tiny: bool) -> Iterator[Case]:
    for asked in _asked(tiny):
        yield _paged(f"paged_attention {model}, {asked.name}", spec, asked)
    tiles = 2 if tiny else 13
    yield _dense(f"dense_attention {model}, {tiles} tiles", spec, tiles)
    for kv, rows in itertools.product(("auto", *KV_DTYPES), (3, 17) if tiny else (64, 4096)):
        shown = "" if kv == "auto" else f", {kv} cache"
        yield _rope(
            f"rope_into_cache {model}, {rows} rows{shown}", spec, [(5, 1)] * rows if rows < 100 else [(5, rows)], kv
        )


def _asked(tiny: bool) -> list[Paged]:
    long, prompt, before, streams = (40, 34, 24, 5) if tiny else (4096, 3400, 2400, 64)
    window = 8 if tiny else 128
    decode = [(long - 1, 1)] * streams
    mixed = [*[(before, 1)] * streams, (0, before), (before, prompt - before)]
    return [
        Paged(f"decode, 1 x {long}", [(long - 1, 1)]),
        Paged(f"decode, {streams} x {long}", decode),
        Paged(f"prompt of {prompt}", [(0, prompt)]),
        Paged(f"{prompt - before} behind {before}", [(before, prompt - before)]),
        Paged("decode and prompts", mixed),
        Paged(f"decode, {streams} x {long}, int8 cache", decode, "int8"),
        Paged(f"decode, {streams} x {long}, fp8 cache", decode, "fp8"),
        Paged(f"{prompt - before} behind {before}, int8 cache", [(before, prompt - before)], "int8"),
        Paged(f"{prompt - before} behind {before}, fp8 cache", [(before, prompt - before)], "fp8"),
        Paged(f"decode, {streams} x {long}, window of {window} and sinks", decode, window=window, sinks=True),
        Paged(f"prompt of {prompt}, window of {window} and sinks", [(0, prompt)], window=window, sinks=True),
    ]


def head_width(spec: TinySpec) -> int:
    return spec.head_dim or spec.hidden // spec.heads


def paged_layout(sequences: Sequences, device: torch.device) -> PagedLayout:
    """Blocks out of order; block 0 is nobody's."""
    needed = [-(-(before + count) // BLOCK) for before, count in sequences]
    order = (torch.randperm(sum(needed), generator=torch.Generator().manual_seed(7)) + 1).split(needed)
    table = torch.zeros(len(sequences), max(needed), dtype=torch.int64)
    slots = []
    for row, (before, count) in enumerate(sequences):
        table[row, : needed[row]] = order[row]
        at = torch.arange(before, before + count)
        slots.append(table[row, at // BLOCK] * BLOCK + at % BLOCK)
    counts, lengths = [count for _, count in sequences], [sum(pair) for pair in sequences]
    starts = torch.tensor([0, *itertools.accumulate(counts)])
    return PagedLayout(
        query_starts=starts.to(device),
        seq_lens=torch.tensor(lengths).to(device),
        block_table=table.to(device),
        kv_slots=torch.cat(slots).to(device),
        token_rows=torch.arange(sum(counts), device=device),
        counts=counts,
        lengths=lengths,
    )


def filled_cache(noise: Noise, sequences: Sequences, spec: TinySpec, kv: str) -> LayerCache:
    blocks = 1 + sum(-(-(before + count) // BLOCK) for before, count in sequences)
    numbers = noise(2, blocks, BLOCK, spec.kv_heads, head_width(spec))
    return numbers if kv == "auto" else QuantisedCache(*quantise(numbers, KV_DTYPES[kv]))


def _paged(name: str, spec: TinySpec, asked: Paged) -> Case:
    width, rows = head_width(spec), sum(count for _, count in asked.sequences)

    def inputs(noise: Noise) -> SimpleNamespace:
        return SimpleNamespace(
            query=noise(rows, spec.heads, width),
            cache=filled_cache(noise, asked.sequences, spec, asked.kv),
            layout=paged_layout(asked.sequences, noise.device),
            sinks=noise(spec.heads) if asked.sinks else None,
        )

    def prepare(ops: Ops, a: SimpleNamespace) -> Call:
        return lambda: ops.paged_attention(a.query, a.cache, a.layout, width**-0.5, asked.window, a.sinks)

    def work(a: SimpleNamespace) -> StageWork:
        seen = asked.window or 10**9
        keys = sum(min(before + count, seen + count - 1) for before, count in asked.sequences)
        pairs = sum(min(before + at + 1, seen) for before, count in asked.sequences for at in range(count))
        kept = 2 * keys * spec.kv_heads * bytes_per_head(width, KV_DTYPES.get(asked.kv, DTYPE))
        return StageWork(kept + 2 * a.query.nbytes, 4.0 * pairs * spec.heads * width)

    return Case(name, inputs, prepare, work)


def _dense(name: str, spec: TinySpec, tiles: int) -> Case:
    tokens, heads = (spec.tile_size // spec.patch) ** 2 + 1, spec.vision_heads
    width = spec.vision_hidden // heads

    def inputs(noise: Noise) -> SimpleNamespace:
        """Thirds of one product, as the tower has them."""
        parts = noise(tiles, tokens, 3 * heads * width).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (heads, width)) for part in parts)
        return SimpleNamespace(query=query, key=key, value=value)

    def work(a: SimpleNamespace) -> StageWork:
        return StageWork(4 * a.query.nbytes, 4.0 * tiles * tokens**2 * heads * width)

    return Case(name, inputs, lambda ops, a: lambda: ops.dense_attention(a.query, a.key, a.value, width**-0.5), work)


def _rope(name: str, spec: TinySpec, sequences: Sequences, kv: str) -> Case:
    width, rows = head_width(spec), sum(count for _, count in sequences)

    def inputs(noise: Noise) -> SimpleNamespace:
        angles = noise(rows, width // 2, dtype=torch.float32)
        return SimpleNamespace(
            query=noise(rows, spec.heads, width),
            key=noise(rows, spec.kv_heads, width),
            value=noise(rows, spec.kv_heads, width),
            cos=angles.cos(),
            sin=angles.sin(),
            cache=filled_cache(noise, sequences, spec, kv),
            layout=paged_layout(sequences, noise.device),
        )

    return Case(name, inputs, _rotated, partial(_rotating, kv), also=_written)


def _rotated(ops: Ops, a: SimpleNamespace) -> Call:
    cache = copied(a.cache)

    def call() -> tuple[Tensor, Any]:
        return ops.rope_into_cache(a.query, a.key, a.value, a.cos, a.sin, cache, a.layout), cache

    return call


def _written(a: SimpleNamespace, result: Any) -> Tensor:
    """The rows that were written, which are few among all of the cache."""
    (whole,) = numbers(result[1])
    return whole.flatten(1, 2)[:, a.layout.kv_slots]


def _rotating(kv: str, a: SimpleNamespace) -> StageWork:
    rows, heads, width = a.key.shape
    written = 2 * rows * heads * bytes_per_head(width, KV_DTYPES.get(kv, DTYPE))
    return StageWork(written + bytes_of([a.query, a.key, a.value, a.cos, a.sin]) + a.query.nbytes)
