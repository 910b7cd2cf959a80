"""InvariantCpuOps: every row's numbers are bit by bit the same in any batch, at the price of more work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tilewise.platforms.cpu.native.kernels import Native
from tilewise.platforms.cpu.packed import keeper
from tilewise.platforms.forms import Form
from tilewise.platforms.kv_cache import LayerCache, PagedLayout, read_blocks
from tilewise.platforms.ops import INVARIANT_ROWS, TorchOps
from tilewise.platforms.weights import Use, Weight, side_by_side


class InvariantCpuOps(TorchOps):
    """The ops of a CPU for which no product, norm or attention ever sees a shape that depends on the rest of the batch.

    How a library sums up, and where its vectors end, depends on shapes and on a row's place, never on what other rows
    hold. Rows of the decoder come in panels with every token in its place (`runner/batch.py`) and are computed a
    panel at a time here; tiles come alone (`runner/encoder.py`). Ops of the tower are therefore the ordinary ones, and
    so are those that round each number by itself (rope). Products with packed weights need no panels: a row's sums have
    one order there in any batch.
    """

    def __init__(self, native: Native | None = None) -> None:
        self._native = native

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return side_by_side(parts, bias, keeper(self._native, one_way=True))

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        return side_by_side(parts, bias, keeper(self._native, int8=True, one_way=True))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ordinary = super().linear
        return _by_panel(lambda panel: ordinary(panel, weight, bias), x)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ordinary = super().rms_norm
        return _by_panel(lambda panel: ordinary(panel, weight, eps), x)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return _by_panel(super().silu_mul, gate_up)

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend from one panel of queries of one sequence at a time to all positions up to the panel's last.

        Positions that are not there yet have zeros, which causality hides. Rows of padding are zero.
        """
        assert layout.token_rows is not None, "batch-invariant ops need the rows of the tokens"
        out = torch.zeros_like(query)
        starts = layout.query_starts.tolist()
        for number, seq_len in enumerate(layout.seq_lens.tolist()):
            rows = layout.token_rows[starts[number] : starts[number + 1]]
            own = layout.block_table[number, : -(-seq_len // cache.shape[2])]
            key, value = _padded(read_blocks(cache, own, query.dtype)[:, :seq_len], 0)
            start = seq_len - len(rows)
            panels = _padded(query[rows].unsqueeze(0), start % INVARIANT_ROWS)[0].split(INVARIANT_ROWS)
            ends = range((start // INVARIANT_ROWS + 1) * INVARIANT_ROWS, len(key) + 1, INVARIANT_ROWS)
            mixed = torch.cat(
                [
                    self._causal_attention(panel, key[:end], value[:end], scale, window, sinks)
                    for panel, end in zip(panels, ends, strict=True)
                ]
            )
            out[rows] = mixed[start % INVARIANT_ROWS :][: len(rows)]
        return out

    def moe_experts(
        self,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Compute a panel at a time, since how many rows share an expert depends on the batch."""
        panels = zip(x.split(INVARIANT_ROWS), chosen.split(INVARIANT_ROWS), weights.split(INVARIANT_ROWS), strict=True)
        ordinary = super().moe_experts
        return torch.cat([ordinary(*panel, gate_up, down, activation) for panel in panels])

    def _expert(
        self, x: Tensor, rows: Tensor, gate_up: Weight, down: Weight, activation: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Send the whole panel through the expert, every row in its place, and leave out the other rows' results."""
        return down.apply(activation(gate_up.apply(x, self)), self)[rows]


def _by_panel(op: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Compute an op of rows [N, ...] a panel at a time, or of one tile [1, ...] as a whole."""
    return op(x) if len(x) <= INVARIANT_ROWS else torch.cat([op(panel) for panel in x.split(INVARIANT_ROWS)])


def _padded(x: Tensor, first: int) -> Tensor:
    """Put x [k, n, heads, D] at place `first` of a panel, with zeros around it up to whole panels."""
    stop = first + x.shape[1]
    whole = x.new_zeros(len(x), -(-stop // INVARIANT_ROWS) * INVARIANT_ROWS, *x.shape[2:])
    whole[:, first:stop] = x
    return whole
