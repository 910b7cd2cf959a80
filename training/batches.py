"""Batches of samples as tensors: batch number n of a seed is a pure function of the seed, n and the plan."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from prompt import encode_conversation
from sample import Sample, level_of
from tasks import make_sample
from tilewise.inputs.media.tiling import Tiling, tile_image

TILE_SIZE = 112
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
SPREAD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
# Tasks whose samples need the same number of tiles share a batch, so that nothing is padded.
TILE_GROUPS: dict[str, int] = {"compare": 2, "small_print": 13, "small_print_medium": 7, "sketch": 10}
BATCH_SIZES: dict[int, int] = {1: 64, 2: 40, 7: 14, 10: 10, 13: 8}
NO_TARGET = -100


@dataclass
class Batch:
    """Tiles (uint8, in prompt order), token ids, and for each position the answer's turn number or 0."""

    tiles: Tensor
    tokens: Tensor
    owners: Tensor

    def pixels(self, device: torch.device) -> Tensor:
        """The normalized tiles, channels first."""
        pixels = self.tiles.to(device).permute(0, 3, 1, 2).float() / 255
        return (pixels - MEAN.to(device)) / SPREAD.to(device)

    def targets(self) -> Tensor:
        """For each position the next token where it belongs to an answer, elsewhere NO_TARGET."""
        targets = torch.where(self.owners > 0, self.tokens, NO_TARGET)
        return torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], NO_TARGET)], dim=1)


def cut_tiles(pictures: list[Image.Image], most_tiles: int) -> list[numpy.ndarray]:
    """The tiles of each picture, cut by the engine's own rule."""
    tiling = Tiling(tile_size=TILE_SIZE, min_tiles=1, max_tiles=most_tiles, thumbnail=True)
    return [tile_image(picture, tiling) for picture in pictures]


def collate(tokenizer: Tokenizer, samples: list[Sample], most_tiles: int = 12) -> Batch:
    """Turn samples into tensors; shorter conversations are padded on the right."""
    tiles, rows = [], []
    for sample in samples:
        cut = cut_tiles(sample.pictures, most_tiles)
        tiles += cut
        rows.append(encode_conversation(tokenizer, [len(part) for part in cut], sample.turns))
    longest = max(len(tokens) for tokens, _ in rows)
    padding = tokenizer.token_to_id("<|endoftext|>")
    tokens = torch.full((len(rows), longest), padding)
    owners = torch.zeros((len(rows), longest), dtype=torch.long)
    for row, (row_tokens, row_owners) in enumerate(rows):
        tokens[row, : len(row_tokens)] = torch.tensor(row_tokens)
        owners[row, : len(row_owners)] = torch.tensor(row_owners)
    return Batch(torch.from_numpy(numpy.concatenate(tiles)), tokens, owners)


def stage_at(plan: list[dict], step: int) -> dict:
    """The last stage of the plan that has begun at this step."""
    return [stage for stage in plan if stage["from_step"] <= step][-1]


def training_batch(tokenizer: Tokenizer, seed: int, step: int, stage: dict, share: tuple[int, int]) -> Batch:
    """The batch of a step, or with share (k, n) every n-th sample of it from the k-th on."""
    rng = random.Random(f"{seed}/batch/{step}")
    weights = stage["weights"]
    tiles = TILE_GROUPS.get(rng.choices(list(weights), list(weights.values()))[0], 1)
    group = {task: weight for task, weight in weights.items() if TILE_GROUPS.get(task, 1) == tiles}
    tasks = rng.choices(list(group), list(group.values()), k=BATCH_SIZES[tiles])
    level, (first, count) = level_of(stage), share
    rows = range(first, len(tasks), count)
    return collate(tokenizer, [make_sample(seed, step * 1000 + row, tasks[row], level) for row in rows])
