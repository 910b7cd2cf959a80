"""Tilewise, in this process, by its Python interface."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from benchmarks.peers.peer import Answer, Lacks, Peer, Setup, run
from benchmarks.peers.work import Prompt

import tilewise
from tilewise import LLM, SamplingParams, StructuredOutputsParams
from tilewise.config import EngineConfig
from tilewise.inputs.media.images import open_image, to_rgb
from tilewise.inputs.media.tiling import Tiling, tile_image
from tilewise.resize import Resize

OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
}
GUESSING = {"method": "ngram", "num_speculative_tokens": 8}


class Tilewise(Peer):
    def __init__(self, setup: Setup) -> None:
        options = OPTIONS[setup.precision]
        known = {field.name for field in dataclasses.fields(EngineConfig)}
        if unknown := set(options) - known:
            raise Lacks(f"this version has no option {', '.join(unknown)}")
        torch.set_num_threads(setup.threads)
        self._setup = setup
        self._load = partial(
            LLM,
            str(setup.form),
            max_model_len=setup.context,
            max_num_seqs=setup.streams,
            num_gpu_blocks_override=setup.streams * setup.context // 16,
            **options,
        )
        self._llm = self._load()

    def about(self) -> dict[str, str]:
        weights = "int8 weights and activations" if self._setup.precision == "int8" else f"{self._setup.precision}"
        return {"version": f"tilewise {tilewise.__version__}, torch {torch.__version__}", "computes": weights}

    def answer(self, prompts: Sequence[Prompt], tokens: int) -> Answer:
        asked = [_asked(prompt) for prompt in prompts]
        started = time.monotonic()
        outputs = self._llm.generate(asked, _greedy(tokens), use_tqdm=False)
        total = time.monotonic() - started
        first = min(output.timing.first_token or math.inf for output in outputs) - started
        return Answer(first, total, outputs[0].usage.prompt_tokens)

    @torch.inference_mode()
    def tile(self) -> float:
        size = self._llm._prepare.spec.tiling.tile_size
        pixels = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8)
        started = time.perf_counter()
        self._llm._core._runner._model.encoder(pixels)  # type: ignore[attr-defined]
        return time.perf_counter() - started

    def preprocess(self, photos: Sequence[bytes]) -> int:
        with ThreadPoolExecutor(self._setup.threads) as pool:
            return sum(pool.map(partial(_tiles, self._llm._prepare.resize), photos))

    def quote(self, number: str) -> float:
        """Structured output makes random weights say the number, with and without guesses."""
        plain = self._quote(number)
        self._llm.close()
        del self._llm
        gc.collect()
        self._llm = self._load(speculative_config=GUESSING)
        return plain / self._quote(number)

    def _quote(self, number: str) -> float:
        """Seconds of decoding, after a warm one."""
        prompt = Prompt(f" Repeat {number}").chat("")
        params = SamplingParams(
            temperature=0, max_tokens=len(number), structured_outputs=StructuredOutputsParams(choice=[number])
        )
        for _ in range(2):
            output = self._llm.generate(prompt, params, use_tqdm=False)[0]
        assert output.outputs[0].text == number
        assert output.timing.decode is not None
        return output.timing.decode


def _asked(prompt: Prompt) -> dict[str, Any]:
    media = {"multi_modal_data": {"image": prompt.picture}} if prompt.picture else {}
    return {"prompt": prompt.chat("<image>"), **media}


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def _tiles(resize: Resize, photo: bytes) -> int:
    return len(tile_image(to_rgb(open_image(photo)), Tiling(), resize))


if __name__ == "__main__":
    run(Tilewise)
