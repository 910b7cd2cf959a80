"""What kernels of Ascend NPUs compute, in plain torch, after their documentation (`torch_npu/_op_plugin_docs.py`).

What that forbids is refused, as drivers do: dtypes, layouts, sizes, lengths. Rows that kernels leave alone are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32)
ND, NZ = 2, 29
_QINT8 = 12
_CODES = {5: torch.float16, 15: torch.bfloat16, 3: torch.int32, 1: torch.int8}
"""Dtypes by torch's numbers of them, as which schemas of torch_npu take a dtype."""


class Refused(ValueError):
    """A call that the documentation forbids."""


class Strictness:
    """True to refuse what a card refuses; else attention takes float32, heads of any width and blocks of any size, too,
    so that what is equal can be seen to be equal.
    """

    here = False


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Refused(what)


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    require(x.dtype in FLOATS and gamma.dtype == x.dtype, "x and gamma have one float dtype")
    require(2 <= x.dim() <= 8 and gamma.shape == x.shape[-gamma.dim() :], "gamma has the last axes of x, of 2 to 8")
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * factor * gamma.float()).to(x.dtype), factor


def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    require(x1.dtype == x2.dtype and x1.shape == x2.shape, "x1 and x2 are alike")
    total = x1 + x2
    return (*rms_norm(total, gamma, epsilon), total)


def rotary_mul(x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    require(rotary_mode == "half" and rotate is None, "only halves are asked for")
    require(x.dim() == r1.dim() == r2.dim() == 4 and r1.shape == r2.shape, "three tensors of four axes")
    require(x.dtype in FLOATS and x.dtype == r1.dtype == r2.dtype, "one float dtype")
    require(r1.shape[-1] == x.shape[-1] and x.shape[-1] % 2 == 0, "r1 and r2 are as wide as x")
    require(all(there in (here, 1) for here, there in zip(x.shape, r1.shape, strict=True)), "r1 is spread over x")
    first, second = x.chunk(2, dim=-1)
    return r1 * x + r2 * torch.cat((-second, first), dim=-1)


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    require(x.dtype in FLOATS and x.shape[dim] % 2 == 0, "a float dtype, and two halves")
    gate, up = x.float().chunk(2, dim=dim)
    return (F.silu(gate) * up).to(x.dtype)


def clipped_swiglu(
    x: Tensor,
    *,
    group_index: Tensor | None = None,
    dim: int = -1,
    alpha: float = 1.702,
    limit: float = 7.0,
    bias: float = 1.0,
    interleaved: bool = True,
) -> Tensor:
    require(x.dtype in FLOATS and x.is_contiguous() and x.dim() > 1 and x.shape[dim] % 2 == 0, "contiguous, two halves")
    require(not interleaved and group_index is None, "halves one behind the other")
    gate, up = x.float().chunk(2, dim=dim)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (gate * torch.sigmoid(alpha * gate) * (up + bias)).to(x.dtype)


def scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    require(cache_mode == "Norm", "a cache whose blocks have rows is cache_mode Norm")
    require(key.dim() == value.dim() == 3 and key.shape[:2] == value.shape[:2], "rows [N, K, D]")
    require(key_cache.dim() == value_cache.dim() == 4, "caches [B, P, K, D]")
    require(key_cache.shape[2:] == key.shape[1:] and value_cache.shape[2:] == value.shape[1:], "heads as in the cache")
    require(len({x.dtype for x in (key, value, key_cache, value_cache)}) == 1, "one dtype")
    require(all(x.is_contiguous() for x in (key, value, key_cache, value_cache, slot_mapping)), "contiguous")
    require(slot_mapping.dtype in (torch.int32, torch.int64) and slot_mapping.shape == key.shape[:1], "a slot a row")
    used = slot_mapping[slot_mapping >= key_cache.shape[1]]  # those of block 0 are nobody's
    require(len(used.unique()) == len(used), "no slot comes twice")
    require(int(slot_mapping.min()) >= 0 and int(slot_mapping.max()) < key_cache[..., 0, 0].numel(), "slots exist")
    for cache, rows in ((key_cache, key), (value_cache, value)):
        cache.view(-1, *rows.shape[1:])[slot_mapping] = rows


def fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | None = None,
    actual_seq_lengths_kv: Sequence[int] | None = None,
    block_table: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = 2**31 - 1,
    next_tokens: int = 2**31 - 1,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    block_size: int = 0,
    learnable_sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    kv_heads = num_key_value_heads or num_heads
    _check_floats(query, key, value, num_heads, kv_heads)
    if input_layout == "BSND":
        require(block_table is None and atten_mask is None and sparse_mode == 0, "tiles see all of themselves")
        require(query.dim() == key.dim() == 4 and query.shape[2] == num_heads, "rows [B, S, N, D]")
        require(key.shape == value.shape and key.shape[2] == kv_heads and key.shape[3] == query.shape[3], "N and D")
        out = torch.stack([_attend(q, k, v, scale) for q, k, v in zip(query, key, value, strict=True)])
        return out, torch.empty(0)
    require(input_layout == "TND", f"input_layout {input_layout}")
    assert block_table is not None
    assert actual_seq_lengths is not None
    assert actual_seq_lengths_kv is not None
    _check_paged(query, key, value, block_table, block_size, kv_heads)
    _check_lengths(query, block_table, actual_seq_lengths, actual_seq_lengths_kv, block_size)
    _check_mask(atten_mask, sparse_mode, next_tokens)
    before = pre_tokens if sparse_mode == 4 else None
    out, first = torch.empty_like(query), 0
    for row, (stop, length) in enumerate(zip(actual_seq_lengths, actual_seq_lengths_kv, strict=True)):
        blocks = block_table[row, : -(-length // block_size)].long()
        keys, values = (x[blocks].flatten(0, 1)[:length].unflatten(1, (kv_heads, -1)) for x in (key, value))
        out[first:stop] = _attend(query[first:stop], keys, values, scale, True, before, learnable_sink)
        first = stop
    return out, torch.empty(0)


def fused_infer_attention_score_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_qlen: Sequence[int],
    actual_seq_kvlen: Sequence[int],
    learnable_sink: Tensor,
    num_query_heads: int = 1,
    softmax_scale: float = 1.0,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    wanted = (torch.bfloat16,) if Strictness.here else FLOATS
    require(learnable_sink.dtype in wanted and learnable_sink.shape == (num_query_heads,), "sinks in bfloat16, a head")
    lengths = {"actual_seq_lengths": actual_seq_qlen, "actual_seq_lengths_kv": actual_seq_kvlen}
    own = {"num_heads": num_query_heads, "scale": softmax_scale, "learnable_sink": learnable_sink}
    return fused_infer_attention_score(query, key, value, **lengths, **own, **others)


def _check_floats(query: Tensor, key: Tensor, value: Tensor, heads: int, kv_heads: int) -> None:
    require(query.dtype in (HALVES if Strictness.here else FLOATS), f"attention does not take {query.dtype}")
    require(query.dtype == key.dtype == value.dtype, "query, key and value have one dtype")
    require(all(x.is_contiguous() for x in (query, key, value)), "query, key and value are contiguous")
    require(heads % kv_heads == 0 and heads // kv_heads <= 64, "query heads are shared out to key heads, 64 each")
    require(query.shape[-1] % 16 == 0 or not Strictness.here, "a head has a multiple of 16 numbers")
    require(query.shape[-1] <= 512, "a head has 512 numbers at most")


def _check_paged(query: Tensor, key: Tensor, value: Tensor, table: Tensor, size: int, kv_heads: int) -> None:
    require(query.dim() == 3 and key.dim() == 3 and key.shape == value.shape, "query [T, N, D], caches [B, P, K * D]")
    require(key.shape[2] == kv_heads * query.shape[2] <= 65535, "keys of all heads are one behind the other")
    require(table.dtype == torch.int32 and table.dim() == 2, "a block table of int32")
    require(size == key.shape[1], "block_size is that of the cache")
    require((size % 128 == 0 and size <= 512) or not Strictness.here, "blocks of 128 to 512 tokens, in steps of 128")
    require(int(table.min()) >= 0 and int(table.max()) < len(key), "blocks exist")


def _check_lengths(query: Tensor, table: Tensor, stops: Sequence[int], lengths: Sequence[int], size: int) -> None:
    require(len(stops) == len(lengths) == len(table), "a length for each sequence")
    require(list(stops) == sorted(stops) and stops[-1] == len(query), "lengths of queries are added up, to T")
    require(table.shape[1] >= -(-max(lengths) // size), "the table is as wide as the longest sequence")


_TRIANGLE = torch.ones(2048, 2048, dtype=torch.int8).triu(1)


def _check_mask(mask: Tensor | None, sparse_mode: int, next_tokens: int) -> None:
    require(sparse_mode in (3, 4), "a causal mask, or a band of one")
    require(sparse_mode == 3 or next_tokens == 0, "nothing behind a token is seen")
    require(mask is not None and mask.shape[-2:] == (2048, 2048), "a mask of 2048 x 2048 comes with it")
    assert mask is not None
    require(mask.dtype in (torch.bool, torch.int8, torch.uint8) and mask.is_contiguous(), "a mask of bytes")
    require(torch.equal(mask.to(torch.int8), _TRIANGLE), "what is above is hidden")


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool = False,
    before: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend from [n, A, D] to [m, K, D]; the last query stands at the last key."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(groups, dim=1) for x in (key, value))
    scores = torch.einsum("nad,mad->anm", query.float(), key) * scale
    if causal:
        behind = torch.arange(len(key) - len(query), len(key))[:, None] - torch.arange(len(key))
        scores = scores.masked_fill(behind < 0 if before is None else (behind < 0) | (behind > before), float("-inf"))
    if sinks is not None:
        column = sinks.float()[:, None, None].expand(-1, len(query), 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = scores.softmax(-1)[..., : len(key)]
    return torch.einsum("anm,mad->nad", weights, value).to(query.dtype)


def dynamic_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    require(x.dtype in HALVES and x.dim() > 1, "rows in float16 or bfloat16")
    scale = x.float().abs().amax(-1) / 127
    levels = torch.where(scale[..., None] > 0, x.float() / scale[..., None], 0.0).round()
    return levels.to(torch.int8), scale


def quantize(
    x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int = 1, div_mode: bool = True
) -> Tensor:
    require(div_mode and dtype == _QINT8, "numbers are divided by scales, and become qint8")
    require(
        x.dtype in FLOATS and scales.dtype in (torch.float32, torch.bfloat16), "floats, scales of float or bfloat16"
    )
    require(scales.dim() == 1 and len(scales) in (1, x.shape[axis]), "a scale for all, or for each place of an axis")
    kinds = (torch.int8, torch.uint8, torch.int32, torch.bfloat16)
    require(zero_points is None or zero_points.dtype in kinds, "zero points are whole numbers or bfloat16")
    require(zero_points is None or zero_points.shape == scales.shape, "a zero point for each scale")
    shifted = x.float() / scales.float() + (0 if zero_points is None else zero_points.float())
    return shifted.round().clamp(-128, 127).to(torch.int8)


def trans_quant_param(scale: Tensor, offset: Tensor | None = None, round_mode: int | None = 0) -> Tensor:
    require(scale.dtype == torch.float32 and scale.dim() == 1 and offset is None, "scales in float32")
    return scale.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
) -> Tensor:
    dtype = _CODES.get(output_dtype or 1)
    require(x1.dtype == x2.dtype == torch.int8 and x1.shape[-1] == x2.shape[0], "int8 [m, k] and [k, n]")
    require(scale.dim() == 1 and len(scale) in (1, x2.shape[1]), "a scale for each output")
    of_scales, of_bias = _PRODUCTS.get((dtype, pertoken_scale is not None), ((), ()))
    require(scale.dtype in of_scales, f"scales of {scale.dtype} for results of {dtype}")
    require(bias is None or (bias.dtype in of_bias and bias.shape == x2.shape[1:]), "a bias of another dtype or shape")
    require(pertoken_scale is None or pertoken_scale.dtype == torch.float32, "scales of rows in float32")
    require(pertoken_scale is None or pertoken_scale.shape == x1.shape[:1], "a scale for each row")
    require(x2.is_contiguous() or x2.T.is_contiguous(), "a matrix, or one that is turned")
    assert dtype is not None
    sums = (x1.double() @ x2.double()).to(torch.int32)
    whole = bias is not None and bias.dtype == torch.int32
    if whole:
        sums = sums + bias
    plain = scale.int().view(torch.float32) if scale.dtype == torch.int64 else scale.float()
    y = sums.float() * plain
    y = y if pertoken_scale is None else y * pertoken_scale[:, None]
    return (y if bias is None or whole else y + bias.float()).to(dtype)


_SCALES = (torch.float32, torch.bfloat16)
_PRODUCTS: dict[tuple[torch.dtype | None, bool], tuple[tuple[torch.dtype, ...], tuple[torch.dtype, ...]]] = {
    (torch.float16, False): ((torch.int64, torch.float32), (torch.int32,)),
    (torch.float16, True): ((torch.float32,), (torch.int32, torch.float16, torch.float32)),
    (torch.bfloat16, False): (_SCALES, (torch.int32,)),
    (torch.bfloat16, True): (_SCALES, (torch.int32, torch.bfloat16, torch.float32)),
}
"""Dtypes of scales and bias, by that of results and whether rows have scales of their own: the table for Atlas A2."""


def moe_init_routing_v2(
    x: Tensor,
    expert_idx: Tensor,
    *,
    active_num: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require(x.dim() == expert_idx.dim() == 2 and len(x) == len(expert_idx), "x [N, H], experts [N, k]")
    require(x.dtype in FLOATS and expert_idx.dtype == torch.int32, "experts in int32")
    require((drop_pad_mode, expert_tokens_num_type, expert_tokens_num_flag) == (0, 1, True), "all tokens, counted")
    require(quant_mode == -1 and row_idx_type == 0, "rows as they are, and the places of choices")
    first, stop = active_expert_range
    require(0 <= first < stop <= expert_num, "a range of experts")
    require(int(expert_idx.min()) >= 0 and int(expert_idx.max()) < expert_num, "experts exist")
    require(active_num in (-1, 0, expert_idx.numel()), "all choices")
    chosen, count = expert_idx.flatten().long(), expert_idx.shape[1]
    here = (chosen >= first) & (chosen < stop)
    order = torch.where(here, chosen, expert_num).argsort(stable=True)
    total = int(here.sum())
    rows = torch.full((len(chosen), x.shape[1]), float("nan"), dtype=x.dtype)
    rows[:total] = x[order[:total] // count]
    places = torch.full((len(chosen),), -1, dtype=torch.int32)
    places[order[:total]] = torch.arange(total, dtype=torch.int32)
    counts = torch.bincount(chosen[here] - first, minlength=stop - first)
    return rows, places, counts, torch.full((len(chosen),), float("nan"))


def grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    *,
    group_list: Tensor,
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    output_dtype: int | None = None,
) -> list[Tensor]:
    (rows,), (matrices,) = x, weight
    require(
        rows.dim() == 2 and matrices.dim() == 3 and rows.shape[1] == matrices.shape[1], "x [n, k], weights [g, k, n]"
    )
    require((group_type, group_list_type) == (0, 1) and split_item in (2, 3), "rows in groups, counted, one result")
    require(group_list.dtype == torch.int64 and group_list.shape == matrices.shape[:1], "int64, a count for each group")
    require(len(group_list) > 1, "more than one group")
    require(rows.dtype == matrices.dtype and rows.dtype in (*FLOATS, torch.int8), "one dtype")
    dtype = rows.dtype if output_dtype is None else {**_CODES, 6: torch.float32}.get(output_dtype)
    require(dtype == (torch.int32 if rows.dtype == torch.int8 else rows.dtype), "results as rows, or sums in int32")
    require(int(group_list.sum()) <= len(rows), "no more rows than there are")
    lost = -(2**31) if dtype == torch.int32 else float("nan")
    out, first = torch.full((len(rows), matrices.shape[2]), lost, dtype=dtype), 0
    for matrix, count in zip(matrices, group_list.tolist(), strict=True):
        out[first : first + count] = (rows[first : first + count].double() @ matrix.double()).to(dtype)
        first += count
    return [out]


def moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Tensor:
    require(probs is not None and probs.dim() == 2 and not padded_mode and restore_shape is None, "weights [N, k]")
    assert probs is not None
    require(
        permuted_tokens.dim() == 2 and len(permuted_tokens) == sorted_indices.numel() == probs.numel(), "N * k rows"
    )
    require(sorted_indices.dim() == 1 and sorted_indices.dtype in (torch.int32, torch.int64), "places as whole numbers")
    require(probs.dtype == permuted_tokens.dtype and probs.dtype in FLOATS, "weights in the dtype of rows")
    rows = permuted_tokens[sorted_indices.long()].float().unflatten(0, probs.shape)
    return (rows * probs.float().unsqueeze(-1)).sum(1).to(permuted_tokens.dtype)


def format_cast(x: Tensor, acl_format: int) -> Tensor:
    require(acl_format in (ND, NZ) and x.dim() >= 2, "a matrix, ND or NZ")
    return x.clone()


STAND_INS: dict[str, Callable[..., Any]] = {
    "npu_rms_norm": rms_norm,
    "npu_add_rms_norm": add_rms_norm,
    "npu_rotary_mul": rotary_mul,
    "npu_swiglu": swiglu,
    "npu_clipped_swiglu": clipped_swiglu,
    "npu_scatter_pa_kv_cache": scatter_pa_kv_cache,
    "npu_fused_infer_attention_score": fused_infer_attention_score,
    "npu_fused_infer_attention_score_v2": fused_infer_attention_score_v2,
    "npu_dynamic_quant": dynamic_quant,
    "npu_quantize": quantize,
    "npu_trans_quant_param": trans_quant_param,
    "npu_quant_matmul": quant_matmul,
    "npu_moe_init_routing_v2": moe_init_routing_v2,
    "npu_grouped_matmul": grouped_matmul,
    "npu_moe_token_unpermute": moe_token_unpermute,
    "npu_format_cast": format_cast,
}
"""Every op of torch_npu that Tilewise calls."""
