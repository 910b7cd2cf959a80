"""Requests at once, with each switch of the engine on and off: tokens a second, first tokens, what the caches spared.

    python benchmarks/engine.py [--model DIR] [--requests 8] [--tokens 32] [--tile-size 448]

Every request has a picture of its own, one tile, and the same question. `again` asks another question about the same
pictures in the same engine: nothing is encoded, and what stands before the question is not computed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from tilewise import LLM, SamplingParams

SWITCHES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "small chunks": {"max_num_batched_tokens": 256},
    "guesses looked up": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4}},
    "overlapped": {"async_scheduling": True},
    "no prefix cache": {"enable_prefix_caching": False},
    "one at a time": {"max_num_seqs": 1},
    "batch-invariant": {"batch_invariant": True},
}


def conversations(count: int, size: int, question: str) -> list[list[dict[str, Any]]]:
    made = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
        picture = {"type": "image_pil", "image_pil": Image.fromarray(pixels)}
        made.append([{"role": "user", "content": [picture, {"type": "text", "text": question}]}])
    return made


def measure(llm: LLM, asked: list[list[dict[str, Any]]], tokens: int) -> list[str]:
    """One round of requests: the cells of a row."""
    before, started = llm._core.counters, time.perf_counter()
    outputs = llm.chat(asked, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)
    seconds, now = time.perf_counter() - started, llm._core.counters
    first = [output.timing.first_token - output.timing.arrival for output in outputs]
    return [
        f"{seconds:.2f}",
        f"{(now.generation_tokens - before.generation_tokens) / seconds:.1f}",
        f"{statistics.median(first):.2f}",
        f"{now.prompt_tokens - before.prompt_tokens}",
        f"{sum(output.num_cached_tokens for output in outputs)}",
        f"{now.tiles_encoded - before.tiles_encoded}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--tile-size", type=int, default=448, help="side of the pictures in pixels")
    parser.add_argument("--only", nargs="+", choices=SWITCHES, default=list(SWITCHES), metavar="SWITCH")
    options = parser.parse_args()
    columns = ("seconds", "tokens/s", "first token, median s", "prompt tokens computed", "cached", "tiles encoded")
    table = Table("switches", "round", *columns)
    for name in options.only:
        changes = SWITCHES[name]
        with LLM(options.model, max_model_len=2048, **changes) as llm:
            llm.chat(conversations(1, options.tile_size // 2, "Warm up."), SamplingParams(max_tokens=4), use_tqdm=False)
            for turn, question in (("first", "What is in this picture?"), ("again", "Which colors does it have?")):
                asked = conversations(options.requests, options.tile_size, question)
                row = measure(llm, asked, options.tokens)
                print(name, turn, *row, sep=", ", flush=True)  # all of it takes minutes
                table.add_row(name, turn, *row)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    console = Console(width=160)
    console.print(f"{options.model}: {options.requests} requests of {options.tokens} tokens; {machine}")
    console.print(table)


if __name__ == "__main__":
    main()
