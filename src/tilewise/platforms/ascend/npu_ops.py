"""AscendOps: the fused kernels of CANN that torch_npu offers, in the places of torch's ops.

Names, shapes and dtypes are those of torch_npu's schemas and documentation (`torch_npu/_op_plugin_docs.py` of its
wheel). Nothing here asks the device for a number, so that steps can be captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from tilewise.platforms.ascend.experts import ExpertStack, multiplied_together
from tilewise.platforms.ascend.weights import NzLayout, ascend_expert, ascend_weight
from tilewise.platforms.fallback import ExpertTables, FallbackOps, Together, by_kernel
from tilewise.platforms.forms import Form
from tilewise.platforms.kv_cache import LayerCache, PagedLayout, QuantisedCache, write_rows
from tilewise.platforms.ops import SWIGLU_ALPHA, SWIGLU_LIMIT, AttentionSize, ExpertSize, HeadNorms
from tilewise.platforms.weights import Use, Weight, rounded_to_int8, side_by_side

npu = torch.ops.npu

_MASK = 2048
"""Side of the triangle from which kernels cut the mask that they need (`sparse_mode` 2 to 4)."""
_CAUSAL, _BAND = 3, 4
"""Values of `sparse_mode`: a query sees all keys before it, or some; the last query stands at the last key."""
_ALL = 2**31 - 1
_BLOCK, _LANES = 128, 16
"""Tokens, of which a KV block has a multiple, and numbers, of which a head has one."""
_INT8_PRODUCT = 17
"""Bytes of a number while sums of int8 become floats: of a row, the sum, in float32, its scales, and both together."""
_FLOATS = (torch.float16, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y: Tensor = npu.npu_rms_norm(x, weight, eps)[0]
    return y


def silu_mul(gate_up: Tensor) -> Tensor:
    y: Tensor = npu.npu_swiglu(gate_up, dim=-1)
    return y


def clamped_swiglu(gate_up: Tensor) -> Tensor:
    y: Tensor = npu.npu_clipped_swiglu(
        gate_up.contiguous(), dim=-1, alpha=SWIGLU_ALPHA, limit=SWIGLU_LIMIT, bias=1.0, interleaved=False
    )
    return y


def rope_into_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: LayerCache,
    layout: PagedLayout,
    norms: HeadNorms | None = None,
) -> Tensor:
    if norms is not None:
        query, key = rms_norm(query, norms.query, norms.eps), rms_norm(key, norms.key, norms.eps)
    # In float32, as the reference: a rotation in bfloat16 rounds twice more.
    both = torch.cat((query, key), dim=1).unsqueeze(0).float()
    cos, sin = (torch.cat((half, half), dim=-1)[None, :, None] for half in (cos, sin))
    turned = npu.npu_rotary_mul(both, cos, sin)[0].to(query.dtype)
    query, key = (part.contiguous() for part in turned.split((query.shape[1], key.shape[1]), dim=1))
    if isinstance(cache, QuantisedCache):
        write_rows(cache, layout.kv_slots, key, value)
    else:
        npu.npu_scatter_pa_kv_cache(key, value.contiguous(), *cache, layout.kv_slots, cache_mode="Norm")
    return query


class AscendOps(FallbackOps):
    """The ops of an Ascend NPU by CANN's kernels."""

    kernels = "NPU kernels"

    def __init__(
        self, nz: NzLayout = NzLayout.QUANTISED, floats: Sequence[torch.dtype] = _FLOATS, any_width: bool = False
    ) -> None:
        """`floats` are the dtypes that attention and rounding to int8 take; `any_width` is for a device that takes any
        width of a head and any block.
        """
        super().__init__()
        self._nz = nz
        self._floats = tuple(floats)
        self._lanes, self._block = (1, 1) if any_width else (_LANES, _BLOCK)
        self._stacks = ExpertTables(ExpertStack.of)
        self._mask: Tensor | None = None

    rms_norm = by_kernel(rms_norm)
    silu_mul = by_kernel(silu_mul)
    clamped_swiglu = by_kernel(clamped_swiglu)
    rope_into_cache = by_kernel(rope_into_cache)

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        keep = ascend_expert if use is Use.EXPERT else partial(ascend_weight, self._nz, self._floats, use)
        return side_by_side(parts, bias, keep)

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return self.store([rounded_to_int8(part) for part in parts], bias, use)

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if scale is not None:
            return super().add_rms_norm(x, scale, y, weight, eps)
        return self.attempt(_add_rms_norm, super().add_rms_norm, x, scale, y, weight, eps)

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        taken = isinstance(cache, Tensor) and self._attends(query) and cache.shape[2] % self._block == 0
        if not taken or (sinks is not None and query.dtype is torch.float16):
            return super().paged_attention(query, cache, layout, scale, window, sinks)
        return self.attempt(self._paged, super().paged_attention, query, cache, layout, scale, window, sinks)

    def _attends(self, query: Tensor) -> bool:
        return query.dtype in self._floats and query.shape[-1] % self._lanes == 0

    def _paged(
        self,
        query: Tensor,
        cache: Tensor,
        layout: PagedLayout,
        scale: float,
        window: int | None,
        sinks: Tensor | None,
    ) -> Tensor:
        key, value = cache.flatten(3)  # [blocks, tokens of a block, heads * width]
        heads, kv_heads = query.shape[1], cache.shape[3]
        queries = list(accumulate(layout.host_counts))
        lengths = list(layout.host_lengths if layout.own_lengths is None else layout.own_lengths)
        # A band reaches from so many tokens before a query's own to so many behind it.
        band = {"sparse_mode": _CAUSAL} if window is None else {"sparse_mode": _BAND, "pre_tokens": window - 1}
        shared = {
            "atten_mask": self._triangle(query.device),
            "block_table": layout.block_table.int(),
            "input_layout": "TND",
            "num_key_value_heads": kv_heads,
            "block_size": cache.shape[2],
            "next_tokens": 0,
            **band,
        }
        if sinks is None:
            found: Tensor = npu.npu_fused_infer_attention_score(
                *(query.contiguous(), key, value),
                actual_seq_lengths=queries,
                actual_seq_lengths_kv=lengths,
                **{"num_heads": heads, "scale": scale, **shared},
            )[0]
        else:
            found = npu.npu_fused_infer_attention_score_v2(
                *(query.contiguous(), key, value),
                actual_seq_qlen=queries,
                actual_seq_kvlen=lengths,
                learnable_sink=sinks.to(query.dtype),
                **{"num_query_heads": heads, "softmax_scale": scale, **shared},
            )[0]
        return found

    def _triangle(self, device: torch.device) -> Tensor:
        """Return what is hidden where queries begin at the first key: int8 [2048, 2048], 1 above the diagonal."""
        if self._mask is None or self._mask.device != device:
            self._mask = torch.ones(_MASK, _MASK, dtype=torch.int8, device=device).triu(1)
        return self._mask

    def paged_scratch(self, size: AttentionSize) -> int:
        """Count nothing where the kernel is used: its workspace is small, and the same for all layers."""
        taken = size.itemsize == 2 and not size.quantised and size.width % self._lanes == 0
        return 0 if taken and "paged_attention" not in self.left_out else super().paged_scratch(size)

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if not self._attends(query):
            return super().dense_attention(query, key, value, scale)
        return self.attempt(_dense_attention, super().dense_attention, query, key, value, scale)

    def moe_scratch(self, size: ExpertSize) -> int:
        """Count the rows of all choices, sorted, and what the products make of them, as if they were of int8."""
        hidden, inner = size.hidden, size.inner
        kept = max(3 * hidden, 2 * hidden + inner, hidden + 3 * inner) * size.itemsize
        choices = size.tokens * size.per_token * (kept + _INT8_PRODUCT * max(2 * inner, hidden))
        return max(choices, super().moe_scratch(size))

    def _together(
        self,
        x: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
    ) -> Together | None:
        first, second = self._stacks.of(gate_up), self._stacks.of(down)
        if first is None or second is None or not len(x) or (first.rounds_rows and x.dtype not in _FLOATS):
            return None
        return partial(multiplied_together, gate_up=first, down=second, activation=activation)


def _add_rms_norm(x: Tensor, _: None, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed, _rms, total = npu.npu_add_rms_norm(x, y, weight, eps)
    return total, normed


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    heads = query.shape[2]
    found: Tensor = npu.npu_fused_infer_attention_score(
        *(query.contiguous(), key.contiguous(), value.contiguous()),
        num_heads=heads,
        num_key_value_heads=heads,
        input_layout="BSND",
        scale=scale,
    )[0]
    return found
