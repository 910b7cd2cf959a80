"""transformers' own InternVL, `generate` on a batch that has all its prompts from the start."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from benchmarks.peers.peer import Answer, Lacks, Peer, Setup, run
from benchmarks.peers.work import Prompt
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto import AutoImageProcessor

TOKENS_PER_TILE = 256


class Transformers(Peer):
    def __init__(self, setup: Setup) -> None:
        if setup.precision == "int8":
            raise Lacks("quantises through other libraries only")
        torch.set_num_threads(setup.threads)
        self._dtype = getattr(torch, setup.precision)
        self._tokenizer = AutoTokenizer.from_pretrained(setup.form, padding_side="left")
        self._processor = AutoImageProcessor.from_pretrained(setup.form)
        model = AutoModelForImageTextToText.from_pretrained(setup.form, dtype=self._dtype)
        self._model = model.eval()

    def about(self) -> dict[str, str]:
        attention = self._model.config._attn_implementation
        return {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "computes": f"{str(self._dtype).removeprefix('torch.')}, attention {attention}",
            "pictures": type(self._processor).__name__,
        }

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt], tokens: int) -> Answer:
        moments: list[float] = []

        def note(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            moments.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        started = time.perf_counter()
        inputs = self._inputs(prompts)
        self._model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
            stopping_criteria=[note],
        )
        assert len(moments) == tokens
        return Answer(moments[0] - started, moments[-1] - started, inputs["input_ids"].shape[1])

    @torch.inference_mode()
    def tile(self) -> float:
        size = self._model.config.vision_config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        pixels = torch.randn(1, 3, height, width, dtype=self._dtype)
        started = time.perf_counter()
        self._model.model.get_image_features(pixel_values=pixels)
        return time.perf_counter() - started

    def preprocess(self, photos: Sequence[bytes]) -> int:
        return sum(len(self._pixels(Image.open(io.BytesIO(photo)))) for photo in photos)

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        cut = self._processor(
            images=[picture], return_tensors="pt", crop_to_patches=True, min_patches=1, max_patches=12
        )
        pixels: torch.Tensor = cut["pixel_values"]
        return pixels

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        texts, pixels = [], []
        for prompt in prompts:
            shown = ""
            if prompt.picture:
                pixels.append(self._pixels(prompt.picture))
                shown = f"<img>{'<IMG_CONTEXT>' * TOKENS_PER_TILE * len(pixels[-1])}</img>"
            texts.append(prompt.chat(shown))
        encoded = self._tokenizer(texts, return_tensors="pt", padding=True)
        inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        return inputs | ({"pixel_values": torch.cat(pixels).to(self._dtype)} if pixels else {})


if __name__ == "__main__":
    run(Transformers)
