"""Every op of a platform against the reference op, and the reference op against a computation of another kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.platforms.ascend import device
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.invariant import InvariantCpuOps
from tilewise.platforms.forms import Dense
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import OPS, Ops, TorchOps

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest absolute difference between two ways of computing values of about one."""

BLOCK = 4
ANY_OPS = [CpuPlatform().ops(), TorchOps(), InvariantCpuOps(), Ops()]
if device.FETCHED:
    ANY_OPS.append(device.lenient_ops())
all_ops = pytest.mark.parametrize("ops", ANY_OPS, ids=lambda ops: type(ops).__name__)
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert found.shape == expected.shape
    assert found.dtype == dtype
    allowed = TOLERANCE.get(dtype, 0.0)
    torch.testing.assert_close(found.double(), expected.double(), atol=allowed, rtol=allowed)


def layout_of(sequences: Sequence[tuple[int, int]]) -> tuple[PagedLayout, int]:
    """Layout of sequences given as (tokens before this step, tokens of this step), in blocks out of order.

    Also the number of blocks of a cache for them, of which block 0 stays unused.
    """
    needed = [-(-(before + count) // BLOCK) for before, count in sequences]
    order = (torch.randperm(sum(needed), generator=torch.Generator().manual_seed(7)) + 1).split(needed)
    table = torch.zeros(len(sequences), max(needed), dtype=torch.int64)
    starts, slots = [0], []
    for row, (before, count) in enumerate(sequences):
        table[row, : needed[row]] = order[row]
        at = torch.arange(before, before + count)
        slots.append(table[row, at // BLOCK] * BLOCK + at % BLOCK)
        starts.append(starts[-1] + count)
    lengths = torch.tensor([before + count for before, count in sequences])
    rows = torch.arange(starts[-1])
    return PagedLayout(torch.tensor(starts), lengths, table, torch.cat(slots), rows), sum(needed) + 1


def filled_cache(
    sequences: Sequence[tuple[int, int]],
    layout: PagedLayout,
    blocks: int,
    kv_heads: int,
    width: int,
    dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor]]:
    """A cache of random keys and values, NaN where there are none; and each sequence's as [2, length, K, D]."""
    cache = torch.full((2, blocks, BLOCK, kv_heads, width), float("nan"), dtype=dtype)
    dense = []
    for row, (before, count) in enumerate(sequences):
        dense.append(noise(2, before + count, kv_heads, width, seed=row, dtype=dtype))
        for at in range(before + count):
            cache[:, layout.block_table[row, at // BLOCK], at % BLOCK] = dense[row][:, at]
    return cache, dense


def attention_by_tokens(
    query: Tensor,
    dense: Sequence[Tensor],
    sequences: Sequence[tuple[int, int]],
    scale: float,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention, one token and one head at a time, in float64. A sink is one more column without a value."""
    out, row = torch.empty(query.shape, dtype=torch.float64), 0
    for (before, count), (keys, values) in zip(sequences, dense, strict=True):
        group = query.shape[1] // keys.shape[1]
        for at in range(before, before + count):
            for head in range(query.shape[1]):
                first = 0 if window is None else max(0, at + 1 - window)
                seen = keys[first : at + 1, head // group].double()
                scores = seen @ query[row, head].double() * scale
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head].double().view(1)))
                weights = scores.softmax(0)[: len(seen)]
                out[row, head] = weights @ values[first : at + 1, head // group].double()
            row += 1
    return out


SEQUENCES = {
    "whole prompt": [(0, 9)],
    "whole prompt of one block": [(0, 4)],
    "first token": [(0, 1)],
    "single token": [(10, 1)],
    "chunk after prefix": [(5, 6)],
    "chunk after whole blocks": [(8, 4)],
    "several of all kinds": [(0, 7), (12, 1), (3, 5), (0, 1), (8, 8), (1, 1)],
}


@all_ops
@both_dtypes
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("sequences", SEQUENCES.values(), ids=SEQUENCES)
def test_paged_attention_is_dense_attention_over_what_came_before(
    ops: Ops, dtype: torch.dtype, heads: tuple[int, int], sequences: list[tuple[int, int]]
) -> None:
    (queries, kv_heads), width = heads, 6
    layout, blocks = layout_of(sequences)
    cache, dense = filled_cache(sequences, layout, blocks, kv_heads, width, dtype)
    query = noise(len(layout.kv_slots), queries, width, seed=99, dtype=dtype)
    found = ops.paged_attention(query, cache, layout, width**-0.5)
    close(found, attention_by_tokens(query, dense, sequences, width**-0.5), dtype)


@cache
def windowed_attention(
    kind: str, dtype: torch.dtype, window: int | None, with_sinks: bool
) -> tuple[tuple[Any, ...], Tensor]:
    """Arguments of `paged_attention`, and what comes of them."""
    sequences, heads, kv_heads, width = SEQUENCES[kind], 6, 2, 6
    layout, blocks = layout_of(sequences)
    filled, dense = filled_cache(sequences, layout, blocks, kv_heads, width, dtype)
    query = noise(len(layout.kv_slots), heads, width, seed=99, dtype=dtype)
    sinks = noise(heads, seed=5, dtype=dtype) if with_sinks else None
    expected = attention_by_tokens(query, dense, sequences, width**-0.5, window, sinks)
    return (query, filled, layout, width**-0.5, window, sinks), expected


@all_ops
@both_dtypes
@pytest.mark.parametrize(
    ("window", "with_sinks"), [(None, True), (1, False), (1, True), (3, False), (4, True), (100, True)]
)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_window_and_sinks_of_attention(
    ops: Ops, dtype: torch.dtype, kind: str, window: int | None, with_sinks: bool
) -> None:
    given, expected = windowed_attention(kind, dtype, window, with_sinks)
    close(ops.paged_attention(*given), expected, dtype)


@pytest.mark.parametrize("window", [None, 7, 100])
def test_slices_of_long_queries_make_the_whole(window: int | None) -> None:
    ops = TorchOps()
    ops.score_bytes = 1  # slices are as short as can be
    layout, blocks = layout_of([(5, 40), (0, 33)])
    cache, _ = filled_cache([(5, 40), (0, 33)], layout, blocks, 2, 6, torch.float32)
    query, sinks = noise(73, 6, 6), noise(6, seed=5)
    assert ops._slice_length(6, 45) < 33
    found = ops.paged_attention(query, cache, layout, 0.4, window, sinks)
    close(found, Ops().paged_attention(query, cache, layout, 0.4, window, sinks))


@all_ops
def test_sinks_take_what_they_weigh(ops: Ops) -> None:
    """Nothing at minus infinity, everything when far above all scores, half when they equal the only score."""
    layout, blocks = layout_of([(0, 1)])
    cache, ((_, value),) = filled_cache([(0, 1)], layout, blocks, 1, 4, torch.float32)
    query, sinks = torch.zeros(1, 3, 4), torch.tensor([-math.inf, 1e4, 0.0])
    found = ops.paged_attention(query, cache, layout, 1.0, sinks=sinks)
    close(found[0], torch.tensor([1.0, 0.0, 0.5])[:, None] * value[0, 0])


@all_ops
def test_a_window_hides_what_is_before_it(ops: Ops) -> None:
    layout, blocks = layout_of([(9, 2)])
    cache, _ = filled_cache([(9, 2)], layout, blocks, 2, 6, torch.float32)
    query = noise(2, 4, 6)
    before = ops.paged_attention(query, cache, layout, 0.4, window=3)
    changed = cache.clone()
    changed[:, layout.block_table[0, 0]] = 1e3
    changed[:, layout.block_table[0, 1], :3] = -1e3
    assert torch.equal(ops.paged_attention(query, changed, layout, 0.4, window=3), before)


@all_ops
def test_scale_is_used(ops: Ops) -> None:
    layout, blocks = layout_of([(3, 4)])
    cache, dense = filled_cache([(3, 4)], layout, blocks, 2, 8, torch.float32)
    query = noise(4, 4, 8)
    close(ops.paged_attention(query, cache, layout, 0.7), attention_by_tokens(query, dense, [(3, 4)], 0.7))


@all_ops
def test_large_scores_do_not_overflow(ops: Ops) -> None:
    layout, blocks = layout_of([(0, 5)])
    cache, dense = filled_cache([(0, 5)], layout, blocks, 1, 8, torch.float32)
    query = 500 * noise(5, 1, 8)
    close(ops.paged_attention(query, cache, layout, 1.0), attention_by_tokens(query, dense, [(0, 5)], 1.0))


@all_ops
@both_dtypes
def test_dense_attention_is_softmax_of_scores(ops: Ops, dtype: torch.dtype) -> None:
    query, key, value = (noise(3, 5, 4, 6, seed=seed, dtype=dtype) for seed in range(3))
    expected = torch.empty(3, 5, 4, 6, dtype=torch.float64)
    for tile in range(3):
        for head in range(4):
            q, k, v = (x[tile, :, head].double() for x in (query, key, value))
            expected[tile, :, head] = (q @ k.T * 0.3).softmax(-1) @ v
    close(ops.dense_attention(query, key, value, 0.3), expected, dtype)


@all_ops
@both_dtypes
def test_keys_and_values_are_written_where_attention_reads_them(ops: Ops, dtype: torch.dtype) -> None:
    sequences = SEQUENCES["several of all kinds"]
    layout, blocks = layout_of(sequences)
    expected, dense = filled_cache(sequences, layout, blocks, 2, 6, dtype)
    cache = expected.clone()
    new = torch.cat([part[:, before:] for (before, _), part in zip(sequences, dense, strict=True)], dim=1)
    cache.view(2, -1, 2, 6)[:, layout.kv_slots] = float("nan")
    still = torch.ones(len(new[0]), 3), torch.zeros(len(new[0]), 3)
    ops.rope_into_cache(new[0], new[0], new[1], *still, cache, layout)
    assert torch.equal(cache.nan_to_num(99), expected.nan_to_num(99))


def queries_and_keys(ops: Ops, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, heads, D] as the queries of a sequence that begins with it, and as its keys, turned."""
    layout, blocks = layout_of([(0, len(x))])
    cache = torch.zeros(2, blocks, BLOCK, *x.shape[1:], dtype=x.dtype)
    query = ops.rope_into_cache(x, x, x, angles.cos(), angles.sin(), cache, layout)
    keys, values = cache.flatten(1, 2)[:, layout.kv_slots]
    assert torch.equal(values, x)
    return query, keys


@all_ops
@both_dtypes
@pytest.mark.parametrize("width", [2, 6, 128])
def test_rope_is_rotation_in_the_complex_plane(ops: Ops, dtype: torch.dtype, width: int) -> None:
    x = noise(7, 3, width, dtype=dtype)
    angles = torch.outer(torch.arange(7.0), 1e4 ** -(torch.arange(0, width, 2) / width))
    halves = x.double().unflatten(-1, (2, width // 2))
    turned = torch.complex(halves[..., 0, :], halves[..., 1, :]) * torch.polar(torch.ones(()), angles)[:, None]
    for found in queries_and_keys(ops, x, angles):
        close(found, torch.cat((turned.real, turned.imag), dim=-1), dtype)


@all_ops
def test_rope_keeps_products_of_equal_distances(ops: Ops) -> None:
    query, key = noise(1, 1, 8).expand(12, 1, 8), noise(1, 1, 8, seed=1).expand(12, 1, 8)
    angles = torch.outer(torch.arange(12.0), 100 ** -(torch.arange(0, 8, 2) / 8))
    query, key = (queries_and_keys(ops, x, angles)[1][:, 0] for x in (query, key))
    products = query @ key.T
    for distance in range(8):
        diagonal = products.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)


@all_ops
@both_dtypes
def test_rms_norm_is_that_of_torch(ops: Ops, dtype: torch.dtype) -> None:
    x, weight = noise(5, 3, 33, dtype=dtype), noise(33, seed=1, dtype=dtype)
    close(ops.rms_norm(x, weight, 1e-5), F.rms_norm(x.double(), (33,), weight.double(), 1e-5), dtype)


@all_ops
def test_rms_norm_uses_eps_and_squares_in_float32(ops: Ops) -> None:
    small = torch.full((1, 4), 1e-3)
    close(ops.rms_norm(small, torch.ones(4), 1.0), small)
    large = torch.full((1, 4), 3e4, dtype=torch.float16)  # whose square is beyond float16
    assert torch.equal(ops.rms_norm(large, torch.ones(4, dtype=torch.float16), 1e-6), torch.ones_like(large))


@all_ops
@both_dtypes
def test_layer_norm_has_mean_weight_and_variance_bias(ops: Ops, dtype: torch.dtype) -> None:
    x, weight, bias = noise(5, 33, dtype=dtype), noise(33, seed=1, dtype=dtype), noise(33, seed=2, dtype=dtype)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight.double() + bias.double()
    close(ops.layer_norm(x, weight, bias, 0.1), expected, dtype)


@all_ops
@both_dtypes
def test_gelu_is_the_exact_form(ops: Ops, dtype: torch.dtype) -> None:
    x = torch.linspace(-4, 4, 65).to(dtype)
    expected = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.tolist()]
    close(ops.gelu(x), torch.tensor(expected, dtype=torch.float64), dtype)


@all_ops
@both_dtypes
def test_silu_mul_gates_by_the_first_half(ops: Ops, dtype: torch.dtype) -> None:
    x = noise(2, 5, 14, dtype=dtype)
    gate, up = x.double()[..., :7], x.double()[..., 7:]
    close(ops.silu_mul(x), gate / (1 + (-gate).exp()) * up, dtype)


@all_ops
@both_dtypes
@pytest.mark.parametrize("scaled", [False, True])
def test_a_norm_behind_a_sum_is_that_of_the_sum(ops: Ops, dtype: torch.dtype, scaled: bool) -> None:
    x, y = noise(2, 5, 14, dtype=dtype), noise(2, 5, 14, seed=1, dtype=dtype)
    scale, weight, bias = noise(3, 14, seed=2, dtype=dtype)
    factor = scale if scaled else None
    total, normed = ops.add_rms_norm(x, factor, y, weight, 1e-5)
    assert torch.equal(total, ops.add_scaled(x, factor, y))
    assert torch.equal(normed, ops.rms_norm(total, weight, 1e-5))
    total, normed = ops.add_layer_norm(x, factor, y, weight, bias, 1e-5)
    assert torch.equal(total, ops.add_scaled(x, factor, y))
    assert torch.equal(normed, ops.layer_norm(total, weight, bias, 1e-5))


@all_ops
@both_dtypes
def test_what_is_added_is_scaled_by_column(ops: Ops, dtype: torch.dtype) -> None:
    x, scale, y = noise(2, 5, 14, dtype=dtype), noise(14, seed=1, dtype=dtype), noise(2, 5, 14, seed=2, dtype=dtype)
    close(ops.add_scaled(x, scale, y), x.double() + scale.double() * y.double(), dtype)
    close(ops.add_scaled(x, None, y), x.double() + y.double(), dtype)


@all_ops
@both_dtypes
def test_linear_with_and_without_bias(ops: Ops, dtype: torch.dtype) -> None:
    x, weight, bias = noise(2, 3, 8, dtype=dtype), noise(5, 8, seed=1, dtype=dtype) / 4, noise(5, seed=2, dtype=dtype)
    product = torch.einsum("tni,oi->tno", x.double(), weight.double())
    close(ops.linear(x, weight, None), product, dtype)
    close(ops.linear(x, weight, bias), product + bias.double(), dtype)


def experts_by_tokens(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: tuple[Tensor, Tensor | None],
    down: tuple[Tensor, Tensor | None],
) -> Tensor:
    """SwiGLU experts, one token and one of its experts at a time, in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for expert, weight in zip(chosen[token].tolist(), weights[token].double(), strict=True):
            inner = gate_up[0][expert].double() @ x[token].double()
            if gate_up[1] is not None:
                inner = inner + gate_up[1][expert].double()
            gate, up = inner[: len(inner) // 2], inner[len(inner) // 2 :]
            outer = down[0][expert].double() @ (gate * gate.sigmoid() * up)
            if down[1] is not None:
                outer = outer + down[1][expert].double()
            out[token] += weight * outer
    return out


Stacked = tuple[Tensor, Tensor | None]
"""Matrices and biases of all experts."""


def experts(ops: Ops, x: Tensor, chosen: Tensor, weights: Tensor, *stacked: Stacked, **how: Any) -> Tensor:
    """`moe_experts` with the experts as these ops keep them."""
    kept = []
    for matrices, biases in stacked:
        own = [None] * len(matrices) if biases is None else list(biases)
        kept.append([ops.store([Dense(matrix)], bias) for matrix, bias in zip(matrices, own, strict=True)])
    return ops.moe_experts(x, chosen, weights, *kept, **how)


def expert_arguments(
    dtype: torch.dtype, tokens: int = 9, count: int = 5, per_token: int = 2, biases: bool = True
) -> tuple[Any, ...]:
    """Expert 1 is nobody's choice and full of NaN, as is its bias."""
    hidden, inner = 10, 6
    gate_up = noise(count, 2 * inner, hidden, seed=1, dtype=dtype) / 4
    down = noise(count, hidden, inner, seed=2, dtype=dtype) / 4
    bias_in, bias_out = noise(count, 2 * inner, seed=3, dtype=dtype), noise(count, hidden, seed=4, dtype=dtype)
    others = torch.tensor([number for number in range(count) if number != 1])
    chosen = others[noise(tokens, len(others), seed=5).topk(per_token).indices]
    weights = noise(tokens, per_token, seed=6).softmax(-1)
    for tensor in (gate_up, down, bias_in, bias_out):
        tensor[1] = float("nan")
    return (
        noise(tokens, hidden, dtype=dtype),
        chosen,
        weights,
        (gate_up, bias_in if biases else None),
        (down, bias_out if biases else None),
    )


@all_ops
@both_dtypes
@pytest.mark.parametrize("biases", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize(("tokens", "per_token"), [(9, 2), (1, 1), (1, 4), (23, 3)], ids=str)
def test_experts_are_mlps_of_the_tokens_that_chose_them(
    ops: Ops, dtype: torch.dtype, biases: bool, tokens: int, per_token: int
) -> None:
    arguments = expert_arguments(dtype, tokens, per_token=per_token, biases=biases)
    found = experts(ops, *arguments, activation=ops.silu_mul)
    close(found, experts_by_tokens(*arguments), dtype)


@all_ops
def test_experts_use_the_activation_they_are_given(ops: Ops) -> None:
    x, chosen, weights, gate_up, down = expert_arguments(torch.float32, biases=False)
    found = experts(ops, x, chosen, weights, gate_up, down, activation=lambda inner: inner[..., ::2])
    picked = torch.einsum("nkfh,nh->nkf", gate_up[0][chosen][:, :, ::2], x)
    close(found, torch.einsum("nk,nkhf,nkf->nh", weights, down[0][chosen], picked))


@all_ops
def test_experts_leave_their_input_alone(ops: Ops) -> None:
    arguments = expert_arguments(torch.float32)
    before = arguments[0].clone()
    experts(ops, *arguments, activation=ops.silu_mul)
    assert torch.equal(arguments[0], before)


@all_ops
def test_patches_times_weights_are_a_convolution(ops: Ops) -> None:
    pixels = torch.randint(256, (2, 12, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std, kernel = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4]), noise(5, 3, 4, 4)
    normalised = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = F.conv2d(normalised, kernel, stride=4).flatten(2).transpose(1, 2)
    patches = ops.patchify(pixels, 4, mean, std)
    assert patches.shape == (2, 6, 48)
    torch.testing.assert_close(patches @ kernel.flatten(1).T, expected, atol=1e-4, rtol=1e-5)


@all_ops
def test_scatter_writes_the_rows_it_is_given_and_no_other(ops: Ops) -> None:
    target, source = noise(6, 3), noise(4, 3, seed=1)
    before = target.clone()
    ops.scatter_rows(target, torch.tensor([5, 0, 2]), source, torch.tensor([1, 1, 3]))
    assert torch.equal(target[[5, 0, 2]], source[[1, 1, 3]])
    assert torch.equal(target[[1, 3, 4]], before[[1, 3, 4]])


def paged_arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    sequences = SEQUENCES["several of all kinds"]
    layout, blocks = layout_of(sequences)
    cache, _ = filled_cache(sequences, layout, blocks, 2, 16, dtype)
    return noise(len(layout.kv_slots), 6, 16, dtype=dtype), cache, layout, 0.25


def pixel_arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    pixels = torch.randint(256, (2, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return pixels, 14, torch.tensor([0.5, 0.4, 0.3]).to(dtype), torch.tensor([0.2, 0.3, 0.25]).to(dtype)


def added_arguments(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What is added, and the weights of the norm; without a scale, as with one the reference rounds twice."""
    return noise(4, 40, seed=2, dtype=dtype), noise(40, seed=1, dtype=dtype)


ARGUMENTS: dict[str, Callable[[torch.dtype], tuple[Any, ...]]] = {
    "linear": lambda d: (noise(3, 9, dtype=d), noise(5, 9, seed=1, dtype=d) / 4, noise(5, seed=2, dtype=d)),
    "rms_norm": lambda d: (noise(4, 40, dtype=d), noise(40, seed=1, dtype=d), 1e-6),
    "layer_norm": lambda d: (noise(4, 40, dtype=d), noise(40, seed=1, dtype=d), noise(40, seed=2, dtype=d), 1e-6),
    "gelu": lambda d: (noise(4, 40, dtype=d),),
    "silu_mul": lambda d: (noise(4, 40, dtype=d),),
    "clamped_swiglu": lambda d: (noise(4, 40, dtype=d) * 5,),
    "add_scaled": lambda d: (noise(4, 40, dtype=d), noise(40, seed=1, dtype=d), noise(4, 40, seed=2, dtype=d)),
    "add_rms_norm": lambda d: (noise(4, 40, dtype=d), None, *added_arguments(d), 1e-6),
    "add_layer_norm": lambda d: (noise(4, 40, dtype=d), None, *added_arguments(d), noise(40, seed=3, dtype=d), 1e-6),
    "paged_attention": paged_arguments,
    "choose_experts": lambda d: (noise(4, 40), 5, d == torch.float32),
    "dense_attention": lambda d: (*(noise(2, 17, 3, 8, seed=seed, dtype=d) for seed in range(3)), 0.35),
    "patchify": pixel_arguments,
}
OF_OWN_DTYPES = {"patchify", "choose_experts"}
"""Pixels are normalised, and experts chosen, in float32."""
ABOVE = {"draw", "moe_experts", "rope_into_cache", "scatter_rows"}
"""Tested above with all implementations, with weights of their own or bit by bit, or with the sampler."""


@both_dtypes
@pytest.mark.parametrize("ops", [ops for ops in ANY_OPS if type(ops) is not Ops], ids=lambda ops: type(ops).__name__)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_cpu_op_is_the_reference_op(name: str, ops: Ops, dtype: torch.dtype) -> None:
    given, untouched = ARGUMENTS[name](dtype), ARGUMENTS[name](dtype)
    results = [getattr(ops, name)(*given), getattr(Ops(), name)(*untouched)]
    for found, expected in zip(*(one if isinstance(one, tuple) else (one,) for one in results), strict=True):
        close(found, expected, expected.dtype if name in OF_OWN_DTYPES else dtype)
    for argument, before in zip(given, ARGUMENTS[name](dtype), strict=True):
        if isinstance(argument, Tensor):  # blocks that no sequence has hold no numbers
            torch.testing.assert_close(argument, before, rtol=0, atol=0, equal_nan=True)


def test_no_op_is_forgotten() -> None:
    """What an op takes beside its result is compared with what it took in tests/runner/test_activations.py.

    Stored weights have tests of their own (test_weights.py).
    """
    assert set(OPS) - {"store", "store_int8", "linear_gelu"} == ARGUMENTS.keys() | ABOVE
