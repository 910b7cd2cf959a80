"""A token of a long context with the KV cache in the dtype of activations, in int8 and in fp8, in turns.

    python benchmarks/kv_cache.py MODEL [--context 4096 8192] [--rounds 5] [--tokens 16]

Each context is computed once for each cache; then all caches decode some tokens, one behind the other, in each round.
Printed are the time of the first token, the median time of a decoded one, and how many times as fast that is.
"""

from __future__ import annotations

import argparse
import statistics
import time

from rich.console import Console
from rich.table import Table

from tilewise import LLM, SamplingParams

CACHES = ("auto", "int8", "fp8")


def decode_seconds(llm: LLM, prompt: list[int], tokens: int) -> tuple[float, float]:
    """Seconds of the first token, and of each one behind it."""
    sampling = SamplingParams(temperature=0, max_tokens=tokens + 1, ignore_eos=True)
    started = time.perf_counter()
    (output,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    timing, done = output.timing, time.perf_counter()
    first = timing.first_token - timing.arrival
    return first, (done - started - first) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--context", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    table = Table("context", "cache", "first token s", "ms a token", "times as fast")
    longest = max(options.context) + options.tokens + 16
    engines = {kind: LLM(options.model, kv_cache_dtype=kind, max_model_len=longest, max_num_seqs=1) for kind in CACHES}
    for context in options.context:
        prompt = [100 + number * 7919 % 9000 for number in range(context)]
        first = {kind: decode_seconds(llm, prompt, 2)[0] for kind, llm in engines.items()}
        times: dict[str, list[float]] = {kind: [] for kind in CACHES}
        for _ in range(options.rounds):
            for kind, llm in engines.items():
                times[kind].append(decode_seconds(llm, prompt, options.tokens)[1])
        base = statistics.median(times["auto"])
        for kind, found in times.items():
            seconds = statistics.median(found)
            cells = (f"{first[kind]:.2f}", f"{1000 * seconds:.1f}", f"{base / seconds:.2f}")
            table.add_row(str(context), kind, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
