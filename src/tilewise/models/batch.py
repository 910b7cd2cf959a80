"""ModelBatch: what one forward pass reads, as tensors. It travels as an argument; there is no global context."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tilewise.platforms.base import PagedLayout


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """N rows: the tokens of S sequences, and padding where rows have fixed places."""

    token_ids: Tensor
    """int64 [N]"""
    positions: Tensor
    """int64 [N] positions in their sequences."""
    layout: PagedLayout
    image_rows: Tensor
    """int64 [I] rows of the batch that are image tokens."""
    tile_rows: Tensor
    """int64 [I] the row of the tile pool, seen as [pages * tokens a tile, hidden], that each of them takes."""
    logits_rows: Tensor
    """int64 [R] rows after which a token is chosen."""
