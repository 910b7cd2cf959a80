"""Driving a model without an engine: a prompt and its tiles in, the logits of every position out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tests.tiny import IMAGE_ID, TinySpec
from tilewise.models.decoder import InternVL, ModelBatch
from tilewise.models.load import Architecture
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import Ops
from tilewise.weights.folder import CheckpointFolder

BLOCK = 4
TEXT_IDS = tuple(range(30, 256, 7))


def load(folder: Path, ops: Ops, context: int = 256, dtype: torch.dtype = torch.float32) -> InternVL:
    return Architecture.of(CheckpointFolder.open(folder)).load(dtype, ops, context)


def prompt_of(spec: TinySpec, images: Sequence[int]) -> list[int]:
    """Text, then each picture (given by its number of tiles) with text after it."""
    ids = list(TEXT_IDS[:5])
    for number, tiles in enumerate(images):
        ids += [spec.image_id] * (tiles * spec.tokens_per_tile) + list(TEXT_IDS[5 + number : 9 + number])
    return ids


def random_tiles(spec: TinySpec, count: int) -> Tensor:
    """uint8 [count, size, size, 3]"""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, spec.tile_size, spec.tile_size, 3), generator=generator, dtype=torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    """What the reference's processor makes of uint8 tiles: float [count, 3, size, size]."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def paged(length: int, seed: int = 0) -> tuple[PagedLayout, int]:
    """One whole sequence in blocks out of order, and the number of blocks that a cache for it needs."""
    blocks = -(-length // BLOCK)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)) + 1
    at = torch.arange(length)
    layout = PagedLayout(
        query_starts=torch.tensor([0, length]),
        seq_lens=torch.tensor([length]),
        block_table=order.unsqueeze(0),
        kv_slots=order[at // BLOCK] * BLOCK + at % BLOCK,
    )
    return layout, blocks + 1


def new_caches(model: InternVL, blocks: int) -> list[Tensor]:
    """Full of NaN, so that reading what was never written shows."""
    config = model.config.decoder
    shape = (2, blocks, BLOCK, model.decoder.num_kv_heads, config.head_dim)
    dtype = model.decoder.dtype
    return [torch.full(shape, float("nan"), dtype=dtype) for _ in range(model.decoder.num_layers)]


@torch.inference_mode()
def all_logits(model: InternVL, ids: Sequence[int], pixels: Tensor, image_id: int = IMAGE_ID) -> Tensor:
    """Logits [positions, vocabulary] of one prompt, whose tiles lie in the pool from last page to first.

    Of a stage in a pipeline that has no head, its hidden states.
    """
    layout, blocks = paged(len(ids))
    token_ids = torch.tensor(ids)
    image_rows = (token_ids == image_id).nonzero().flatten()
    tokens, pages = model.config.tokens_per_tile, list(reversed(range(len(pixels))))
    shape = (max(len(pixels), 1), tokens, model.config.decoder.hidden_size)
    pool = torch.full(shape, float("nan"), dtype=model.decoder.dtype)
    if len(pixels) and model.encoder is not None:
        pool[pages] = model.encoder(pixels).rows[:, :tokens]
    tile_rows = [page * tokens + row for page, row in itertools.product(pages, range(tokens))]
    batch = ModelBatch(
        token_ids=token_ids,
        positions=torch.arange(len(ids)),
        layout=layout,
        image_rows=image_rows,
        tile_rows=torch.tensor(tile_rows, dtype=torch.int64),
        logits_rows=torch.arange(len(ids)),
    )
    hidden = model.hidden(batch, new_caches(model, blocks), pool)
    return model.logits(hidden) if model._mesh.is_last_stage else hidden
