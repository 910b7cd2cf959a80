"""transformers' own InternVL in the same shapes, with random weights on the same device. Parts "transformers-*"."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.items import Item
from benchmarks.gpu.models import Model, spec_of, write_hf_folder
from benchmarks.gpu.rows import Figure, Note, Row, median, milliseconds
from benchmarks.gpu.setup import Setup

_ROOM = 1.3
"""What has to be free, as a multiple of the weights."""


def items(size: str, setup: Setup) -> Iterator[Item]:
    bench = TransformersBench(size, setup)
    yield Item("start", bench.start, needed=True)
    yield Item("answers", bench.answers)
    yield Item("streams", bench.streams)


class TransformersBench:
    def __init__(self, size: str, setup: Setup) -> None:
        self.size, self.setup = size, setup
        self.spec, self.device = spec_of(size, setup.tiny), setup.platform().device
        self.chance = np.random.default_rng(setup.seed)
        self.model: Any = None

    def start(self) -> Iterator[Row]:
        import transformers
        from transformers import AutoConfig, AutoModelForImageTextToText

        folder = write_hf_folder(self.size, self.setup.folder / f"{self.size}-hf", self.setup.tiny)
        platform = self.setup.platform()
        matrices = Model(self.size)
        work = matrices.work(matrices.write(self.setup.folder / f"{self.size}-sizes", self.setup.tiny), platform)
        weights = sum(part.bytes for part in work.parts.values())
        if platform.free_memory() < _ROOM * weights:
            yield Note("start", f"left out: {weights / 1e9:.1f} GB of weights do not fit")
            return
        started = time.perf_counter()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device(self.device):
            self.model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
        yield Figure("start", time.perf_counter() - started, "s")
        yield Note("version", f"transformers {transformers.__version__}, {self.model.config._attn_implementation}")

    def answers(self) -> Iterator[Row]:
        if self.model is None:
            return
        tokens = self.setup.sized(64, 6)
        self._answer(1, 2, tiles=1)
        found = [self._answer(1, tokens, tiles=1) for _ in range(self.setup.sized(3, 1))]
        yield milliseconds("first token, 1 tile", [first for first, _ in found])
        yield median("decode, 1 streams", [(tokens - 1) / (last - first) for first, last in found], "tokens/s")

    def streams(self) -> Iterator[Row]:
        if self.model is None:
            return
        tokens = self.setup.sized(32, 4)
        for count in (8, 64):
            first, last = self._answer(count, tokens, tiles=0)
            yield Figure(f"decode, {count} streams", count * (tokens - 1) / (last - first), "tokens/s")

    @torch.inference_mode()
    def _answer(self, count: int, tokens: int, tiles: int) -> tuple[float, float]:
        """Seconds to the first and to the last token of prompts of 256 tokens, or of a picture and 32 tokens.

        Pixels are on the device already: what the host does with pictures is not measured here.
        """
        moments: list[float] = []

        def note(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if self.setup.on_gpu:
                torch.cuda.synchronize()
            moments.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        text = self.chance.integers(10, 250, (count, self.setup.sized(32 if tiles else 256, 16)))
        ids = torch.from_numpy(text).to(self.device)
        inputs: dict[str, Any] = {}
        if tiles:
            places = torch.full((count, tiles * self.spec.tokens_per_tile), self.spec.image_id, device=self.device)
            ids = torch.cat((places, ids), dim=1)
            side = self.spec.tile_size
            inputs["pixel_values"] = torch.randn(tiles * count, 3, side, side, dtype=torch.bfloat16, device=self.device)
        started = time.perf_counter()
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[note],
        )
        return moments[0] - started, moments[-1] - started
