"""What `--check-numerics` costs: decoded tokens and the prompt of a picture, with it and without, in turns.

    python benchmarks/check_numerics.py [MODEL] [--rounds 9] [--tokens 32] [--busy]

Two engines of one model answer the same, one behind the other, in each round. `--busy` is for a machine that does other
things, too: one thread computes, and its time on the processor counts. Printed are medians over the rounds, and the
median of the ratios within each round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from tilewise import LLM, SamplingParams

SIDE = 448


def seconds_of(llm: LLM, prompts: list[Any], tokens: int, clock: Callable[[], float]) -> float:
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    started = clock()
    llm.generate(prompts, sampling, use_tqdm=False)
    return clock() - started


def decoding(llm: LLM, sequences: int, tokens: int, clock: Callable[[], float]) -> float:
    """Seconds of a step that decodes, behind prompts that are known."""
    prompts = [{"prompt_token_ids": [100 + number + place % 50 for place in range(17)]} for number in range(sequences)]
    first = seconds_of(llm, prompts, 1, clock)
    return (seconds_of(llm, prompts, tokens + 1, clock) - first) / tokens


def picture(llm: LLM, clock: Callable[[], float], seed: int) -> float:
    """Seconds to the first token about a picture that is new."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    prompt = {"prompt": "<image>\nWhat is it?", "multi_modal_data": {"image": Image.fromarray(pixels)}}
    return seconds_of(llm, [prompt], 1, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    if options.busy:
        torch.set_num_threads(1)
    clock = time.process_time if options.busy else time.perf_counter
    engines = [LLM(options.model, check_numerics=checks, max_model_len=512) for checks in (False, True)]
    works: dict[str, Callable[[LLM, int], float]] = {
        "token, 1 sequence": lambda llm, seed: decoding(llm, 1, options.tokens, clock),
        "step, 8 sequences": lambda llm, seed: decoding(llm, 8, options.tokens, clock),
        "picture of one tile": lambda llm, seed: picture(llm, clock, seed),
    }
    table = Table("what", "ms without", "ms with", "ratio")
    for name, work in works.items():
        for llm in engines:
            work(llm, 10_000)
        pairs = []
        for seed in range(options.rounds):
            order = engines if seed % 2 else engines[::-1]  # whoever goes second finds the caches warm
            found = {id(llm): work(llm, seed) for llm in order}
            pairs.append([found[id(llm)] for llm in engines])
        without, checked = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(after / before for before, after in pairs)
        table.add_row(name, f"{without:.2f}", f"{checked:.2f}", f"{ratio:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
