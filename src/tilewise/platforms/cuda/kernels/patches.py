"""Pixels of tiles as normalised patches, which the tower's first product reads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _patchify(pixels, mean, std, out, height, width, PATCH: tl.constexpr, BLOCK: tl.constexpr):
    """Write BLOCK numbers of one tile, in the order of the result: patch, channel, line, column.

    Writes are in order. The bytes that are read lie in lines of 3 * PATCH; the others of their cache lines are read by
    neighbouring programs.
    """
    tile = tl.program_id(0).to(tl.int64) * height * width * 3
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = place < height * width * 3
    patch, within = place // (3 * PATCH * PATCH), place % (3 * PATCH * PATCH)
    channel, cell = within // (PATCH * PATCH), within % (PATCH * PATCH)
    across = width // PATCH
    line = patch // across * PATCH + cell // PATCH
    column = patch % across * PATCH + cell % PATCH
    numbers = tl.load(pixels + tile + (line * width + column) * 3 + channel, mask=mask, other=0).to(tl.float32)
    centred = tl.div_rn(numbers, tl.full(numbers.shape, 255.0, tl.float32)) - tl.load(mean + channel)
    result = tl.div_rn(centred, tl.load(std + channel))
    tl.store(out + tile + place, result.to(out.dtype.element_ty), mask=mask)


def patchify(pixels: Tensor, patch: int, mean: Tensor, std: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute `Ops.patchify` in any float dtype: uint8 [tiles, H, W, 3] -> [tiles, H/p * W/p, 3*p*p], channel-major.

    mean, std float32 [3].
    """
    tiles, height, width, _ = pixels.shape
    patches = (height // patch) * (width // patch)
    out = torch.empty(tiles, patches, 3 * patch * patch, dtype=out_dtype, device=pixels.device)
    if out.numel():
        grid = (tiles, triton.cdiv(height * width * 3, _BLOCK))
        _patchify[grid](pixels.contiguous(), mean, std, out, height, width, PATCH=patch, BLOCK=_BLOCK)
    return out
