"""A token of a long context with the KV cache in the dtype of activations, in int8 and in fp8, in turns.

    python benchmarks/kv_cache.py MODEL [--context 4096 8192] [--rounds 5] [--tokens 16] [--busy]

Each context is computed once for each cache; then all caches decode some tokens, one behind the other, in each round.
`--busy` is for a machine that does other things, too: one thread computes, and its time on the processor counts.
Printed are the median time of a decoded token, and how many times as fast that is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from tilewise import LLM, SamplingParams

CACHES = ("auto", "int8", "fp8")


def decode_seconds(llm: LLM, prompt: list[int], tokens: int, clock: Callable[[], float]) -> float:
    """Seconds of each token behind the first, whose prompt is known but for its last block."""
    spent = []
    for count in (1, tokens + 1):
        sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        started = clock()
        llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        spent.append(clock() - started)
    return (spent[1] - spent[0]) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--context", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    if options.busy:
        torch.set_num_threads(1)
    clock = time.process_time if options.busy else time.perf_counter
    table = Table("context", "cache", "ms a token", "times as fast")
    longest = max(options.context) + options.tokens + 16
    engines = {kind: LLM(options.model, kv_cache_dtype=kind, max_model_len=longest, max_num_seqs=1) for kind in CACHES}
    for context in options.context:
        prompt = [100 + number * 7919 % 9000 for number in range(context)]
        for llm in engines.values():
            decode_seconds(llm, prompt, 1, clock)
        times: dict[str, list[float]] = {kind: [] for kind in CACHES}
        for _ in range(options.rounds):
            for kind, llm in engines.items():
                times[kind].append(decode_seconds(llm, prompt, options.tokens, clock))
        base = statistics.median(times["auto"])
        for kind, found in times.items():
            seconds = statistics.median(found)
            table.add_row(str(context), kind, f"{1000 * seconds:.1f}", f"{base / seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
