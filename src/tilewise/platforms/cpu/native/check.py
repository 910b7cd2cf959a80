"""Trial of the kernels of a shared object against the reference: `python -m ...check LIBRARY [NAME TO SKIP ...]`.

It runs in a process of its own (`build.try_kernels`), since a kernel may crash. It prints `begin NAME`, then `right
NAME` or `wrong NAME WHY`, so that a reader knows in which kernel it ended. Shapes are small and odd on purpose.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tilewise.platforms.cpu.native.kernels import Native
from tilewise.platforms.cpu.native_ops import NativeCpuOps
from tilewise.platforms.cpu.packed import PackedGrouped, PackedInt8Weight
from tilewise.platforms.forms import Codes, Dense, Grouped, Int8, StaticRows, packed_nibbles
from tilewise.platforms.kv_cache import KV_DTYPES, PagedLayout, QuantisedCache, empty_cache, quantise
from tilewise.platforms.ops import Ops
from tilewise.resize import ResizeKernels, by_pillow

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest difference, absolute and relative, of numbers of about one; bfloat16 rounds to a 256th."""

BLOCK = 16
"""Tokens of a block of the cache."""


def noise(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def paged_layout(lengths: Sequence[int], counts: Sequence[int]) -> tuple[PagedLayout, int]:
    """Lay out sequences of so many tokens, the last of which are this step's; also return how many blocks they take.

    Their blocks are out of order.
    """
    needed = [-(-length // BLOCK) for length in lengths]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(7)).split(needed)
    table = torch.zeros(len(lengths), max(needed), dtype=torch.int64)
    slots = []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[row, : needed[row]] = order[row]
        at = torch.arange(length - count, length)
        slots.append(table[row, at // BLOCK] * BLOCK + at % BLOCK)
    starts = torch.tensor(list(itertools.accumulate(counts, initial=0)))
    return PagedLayout(starts, torch.tensor(lengths), table, torch.cat(slots)), sum(needed)


def widths(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows, and two vectors of their width. The last rows are parts of wider ones."""
    for rows, width in ((1, 64), (5, 33), (40, 896), (3, 7)):
        yield noise(rows, width, seed=width, dtype=dtype), *noise(2, width, seed=1, dtype=dtype)
    yield noise(4, 3, 60, seed=2, dtype=dtype)[..., 7:47], *noise(2, 40, seed=3, dtype=dtype)


def rms_norm(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, weight, _ in widths(dtype):
        yield ops.rms_norm(x, weight, 1e-5)


def layer_norm(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, weight, bias in widths(dtype):
        yield ops.layer_norm(x + 3, weight, bias, 1e-5)


def gelu(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, *_ in widths(dtype):
        yield ops.gelu(3 * x)
    yield ops.gelu(torch.tensor([0.0, -40.0, 40.0, 1e-6, -6.0]).to(dtype))


def silu_mul(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, *_ in widths(dtype):
        yield ops.silu_mul(torch.cat((4 * x, x), dim=-1))
    yield ops.silu_mul(torch.tensor([-200.0, 200.0, -20.0, 0.0, 1.0, 1.0, 1.0, 1.0]).to(dtype))


def add_scaled(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, scale, _ in widths(dtype):
        yield ops.add_scaled(x, scale, x + 1)
        yield ops.add_scaled(x, None, x + 1)


def add_rms_norm(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    """Compare sums and norms without a scale, as such sums are rounded once, and with a scale only the sums."""
    for x, scale, weight in widths(dtype):
        y = x.flip(0).contiguous()
        yield from ops.add_rms_norm(x.contiguous(), None, y, weight, 1e-5)
        yield ops.add_rms_norm(x.contiguous(), scale, y, weight, 1e-5)[0]


def add_layer_norm(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, scale, weight in widths(dtype):
        y = x.flip(0).contiguous()
        yield from ops.add_layer_norm(x + 3, None, y, weight, scale, 1e-5)
        yield ops.add_layer_norm(x + 3, scale, y, weight, scale, 1e-5)[0]


def rope_into_cache(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    """Rotate queries, keys and values that are parts of wider rows."""
    for lengths, counts, heads, kv_heads, width in (
        ([5, 23], [5, 4], 3, 1, 64),
        ([70], [70], 4, 2, 128),
        ([9, 1], [1, 1], 2, 2, 6),
        ([40], [40], 7, 1, 40),
    ):
        layout, blocks = paged_layout(lengths, counts)
        angles = noise(sum(counts), width // 2, seed=1, dtype=torch.float32)
        wide = noise(sum(counts), heads + 2 * kv_heads + 1, width, seed=2, dtype=dtype)[:, 1:]
        cache = torch.zeros(2, blocks, BLOCK, kv_heads, width, dtype=dtype)
        query, key, value = wide.split((heads, kv_heads, kv_heads), dim=1)
        yield ops.rope_into_cache(query, key, value, angles.cos(), angles.sin(), cache, layout)
        yield cache


def dense_attention(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for tiles, tokens, heads, width in ((1, 1, 1, 8), (2, 17, 3, 64), (1, 300, 2, 128), (2, 140, 1, 22)):
        qkv = noise(tiles, tokens, 3 * heads * width, seed=tokens, dtype=dtype).chunk(3, dim=-1)
        query, key, value = (x.unflatten(-1, (heads, width)) for x in qkv)
        yield ops.dense_attention(query, key, value, width**-0.5)
        yield ops.dense_attention(query[:, :1], key, value, width**-0.5)


def paged_attention(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    """Attend in whole prompts, chunks, and from single tokens to long pasts; with windows and sinks."""
    for heads, kv_heads, width in ((7, 1, 64), (4, 2, 128), (3, 3, 20)):
        layout, blocks = paged_layout([1, 150, 700, 300, 600], [1, 150, 1, 40, 3])
        cache = noise(2, blocks, BLOCK, kv_heads, width, seed=1, dtype=dtype)
        query = noise(len(layout.kv_slots), heads + 1, width, seed=2, dtype=dtype)[:, 1:]
        yield ops.paged_attention(query, cache, layout, width**-0.5)
        sinks = noise(heads, seed=3, dtype=dtype)
        yield ops.paged_attention(query, cache, layout, width**-0.5, window=190, sinks=sinks)


def quantised_rope_into_cache(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    """Make quarter turns, which are exact in any order of sums, so that numbers of 8 bits have to be the same ones."""
    for kept, (lengths, counts, kv_heads, width) in itertools.product(
        KV_DTYPES.values(),
        (([5, 23], [5, 4], 1, 64), ([70], [70], 2, 128), ([9, 1], [1, 1], 2, 6), ([40], [40], 1, 40)),
    ):
        layout, blocks = paged_layout(lengths, counts)
        turns = noise(sum(counts), width // 2, seed=1, dtype=torch.float32).sign()
        wide = noise(sum(counts), 3 + 2 * kv_heads, width, seed=2, dtype=dtype)[:, 1:]
        wide[::3, :, ::2] *= 1e-4
        cache = empty_cache((2, blocks, BLOCK, kv_heads, width), kept, turns.device)
        assert isinstance(cache, QuantisedCache)
        cache.numbers.view(torch.int8).zero_()
        query, key, value = wide.split((2, kv_heads, kv_heads), dim=1)
        yield ops.rope_into_cache(query, key, value, turns.clamp(min=0), turns.clamp(max=0), cache, layout)
        yield cache.numbers.float()
        yield cache.scales.view(2, -1, kv_heads)[:, layout.kv_slots]


def quantised_paged_attention(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for kept, (heads, kv_heads, width) in itertools.product(KV_DTYPES.values(), ((7, 1, 64), (4, 2, 128), (3, 3, 20))):
        layout, blocks = paged_layout([1, 90, 600, 300], [1, 90, 1, 40])
        cache = QuantisedCache(*quantise(noise(2, blocks, BLOCK, kv_heads, width, seed=1, dtype=dtype), kept))
        query = noise(len(layout.kv_slots), heads + 1, width, seed=2, dtype=dtype)[:, 1:]
        if width == 128:
            sinks = noise(heads, seed=3, dtype=dtype)
            yield ops.paged_attention(query, cache, layout, width**-0.5, window=190, sinks=sinks)
        else:
            yield ops.paged_attention(query, cache, layout, width**-0.5)


def products(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield rows, a matrix and a bias; inputs and outputs fill no panel, and rows make every strip."""
    for rows, inputs, outputs in ((3, 33, 17), (110, 70, 31), (21, 514, 48)):
        matrix = noise(outputs, inputs, seed=1, dtype=torch.float32) / inputs**0.5
        bias = noise(outputs, seed=2, dtype=dtype) if rows < 100 else None
        yield noise(rows, inputs, seed=rows, dtype=dtype), matrix.to(dtype), bias


def store(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, matrix, bias in products(dtype):
        weight = ops.store([Dense(matrix)], bias)
        yield from (weight.apply(x[:some], ops) for some in (0, 1, 2, *range(3, len(x) + 1, 9)))


def store_int8(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, matrix, bias in products(dtype):
        weight = ops.store_int8([Dense(matrix)], bias)
        yield from (weight.apply(x[:some], ops) for some in (0, 1, 2, *range(3, len(x) + 1, 9)))


def store_levels(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    """Multiply static rows, whose sums a reference of int64 has exactly."""
    static = StaticRows(0.02, -9)
    for x, matrix, bias in products(dtype):
        levels = (matrix.float() * 300).round().clamp(-128, 127).to(torch.int8)
        scales, addend = (torch.arange(len(levels)) + 1.0) / 1e6, torch.arange(len(levels), dtype=torch.int32)
        if isinstance(ops, NativeCpuOps):
            weight = PackedInt8Weight.of(ops.native, Int8(levels, scales, static, addend), bias)
            assert weight is not None
            yield from (weight.apply(x[:some], ops) for some in (1, len(x)))
        else:
            rounded = ((x.float() / torch.tensor(static.scale)).round() + static.offset).clamp(-128, 127).long()
            y = (rounded @ levels.long().T + addend).float() * scales
            y = (y if bias is None else y + bias.float()).to(dtype)
            yield from (y[:some] for some in (1, len(x)))


def groups_of_codes() -> Iterator[Grouped]:
    """Yield all kinds of codes and of shifts, with groups that end within a tile and within a matrix."""
    for number, kind in enumerate(Codes):
        for inputs, outputs, group in ((70, 33, 32), (514, 48, 128)):
            seed = torch.Generator().manual_seed(number)
            codes = torch.randint(0, min(2**kind.bits, 120), (outputs, inputs), dtype=torch.uint8, generator=seed)
            size = kind.table()[:120].abs().max() * inputs**0.5
            scales = ((torch.rand(outputs, -(-inputs // group), generator=seed) + 0.1) / size).to(torch.float16).float()
            shifts = (None, -3 * scales, scales / 3)[number % 3]
            order = torch.randperm(inputs, generator=seed) if group == 32 else None
            yield Grouped(kind, packed_nibbles(codes) if kind.bits == 4 else codes, scales, shifts, group, order)


def store_grouped(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for form in groups_of_codes():
        outputs, inputs = form.shape
        x, bias = noise(70, inputs, seed=1, dtype=dtype), noise(outputs, seed=2, dtype=dtype)
        for one_way in (False, True):
            if isinstance(ops, NativeCpuOps):
                weight = PackedGrouped.of(ops.native, form, bias, one_way)
                assert weight is not None
                yield from (weight.apply(x[:some], ops) for some in (1, 2, 3, 7, 33, 70))
            else:
                y = (x.float() @ form.dequantised().T + bias.float()).to(dtype)
                yield from (y[:some] for some in (1, 2, 3, 7, 33, 70))


def linear_gelu(ops: Ops, dtype: torch.dtype) -> Iterator[Tensor]:
    for x, matrix, bias in products(dtype):
        for weight in (ops.store([Dense(matrix)], bias), ops.store_int8([Dense(matrix)], bias)):
            yield ops.linear_gelu(3 * x, weight)


CHECKS: dict[str, Callable[[Ops, torch.dtype], Iterator[Tensor]]] = {
    check.__name__: check
    for check in (
        *(rms_norm, layer_norm, gelu, silu_mul, add_scaled, add_rms_norm, add_layer_norm),
        *(rope_into_cache, quantised_rope_into_cache, dense_attention, paged_attention, quantised_paged_attention),
        *(store, store_int8, linear_gelu, store_levels, store_grouped),
    )
}
"""Functions by the names of kernels that `NativeCpuOps` asks for: each yields what any ops make of some inputs."""


def fault(name: str, native: NativeCpuOps) -> str:
    """Return what is wrong with an op's kernel; empty = nothing."""
    for dtype, tolerance in TOLERANCE.items():
        pairs = zip(CHECKS[name](native, dtype), CHECKS[name](Ops(), dtype), strict=True)
        for found, expected in pairs:
            if not torch.allclose(found.float(), expected.float(), atol=tolerance, rtol=tolerance):
                worst = float((found.float() - expected.float()).abs().max())
                return f"differs from the reference by {worst:.1e} ({dtype}, {tuple(expected.shape)})"
    return ""


def resize_fault(library: str) -> str:
    """Return what is wrong with the kernels that resize pictures; empty = nothing.

    They resize to more and to fewer pixels, rows by fours and alone.
    """
    kernels = ResizeKernels(library)
    for shape, size in (((40, 57, 3), (112, 91)), ((131, 90, 3), (28, 28)), ((203, 17, 3), (33, 40))):
        picture = Image.fromarray(np.random.default_rng(shape[0]).integers(0, 256, shape, np.uint8))
        if not np.array_equal(kernels(picture, size), by_pillow(picture, size)):
            return f"differs from Pillow ({picture.width}x{picture.height} to {size[0]}x{size[1]})"
    return ""


def main(library: str, *skip: str) -> None:
    ops = NativeCpuOps(Native(Path(library)))
    trials = {**{name: partial(fault, name, ops) for name in CHECKS}, "resize": partial(resize_fault, library)}
    for name, trial in trials.items():
        if name not in skip:
            print("begin", name, flush=True)
            said = trial()
            print(*(("wrong", name, said) if said else ("right", name)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
