"""One stream of answers by several forms of one model, in turns.

    python benchmarks/quantised.py float=MODEL int8=MODEL,quantization=int8 w4a16=FOLDER [--rounds 5] [--tokens 32]

Each engine is `NAME=MODEL[,option=value...]`; all are loaded at first, and each answers in each round. Printed are the
medians of the time to the first token of a prompt of 256 and of each token behind it, how many times as fast that is as
the first engine, and what the weights take.
"""

from __future__ import annotations

import argparse
import statistics
import time

from rich.console import Console
from rich.table import Table

from tilewise import LLM, SamplingParams
from tilewise.evals.comparison import read_engine

PROMPT = 256


def measured(llm: LLM, tokens: int, turn: int) -> tuple[float, float]:
    """Seconds until the first token of a prompt that no cache knows, and of each token behind it."""
    prompt = [1000 + turn, *(100 + number * 7919 % 9000 for number in range(PROMPT - 1))]
    spent = []
    for count in (1, tokens + 1):
        llm.reset_prefix_cache()
        started = time.perf_counter()
        sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        spent.append(time.perf_counter() - started)
    return spent[0], (spent[1] - spent[0]) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="+", metavar="NAME=MODEL[,option=value]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    engines: dict[str, LLM] = {}
    for text in options.engines:
        name, _, engine = text.partition("=")
        asked = {"max_model_len": 1024, "max_num_seqs": 1, "dtype": "bfloat16", "use_tqdm_on_load": False}
        engines[name] = LLM(**asked, **read_engine(engine))
    for llm in engines.values():
        measured(llm, 2, 0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for turn in range(1, options.rounds + 1):
        for name, llm in engines.items():
            times[name].append(measured(llm, options.tokens, turn))
    table = Table("form", "first token, ms", "times as fast", "ms a token", "tokens/s", "times as fast", "weights")
    base = [statistics.median(column) for column in zip(*times[next(iter(times))], strict=True)]
    for name, found in times.items():
        first, each = (statistics.median(column) for column in zip(*found, strict=True))
        weights = engines[name].resolved.reasons["weights"]
        row = (f"{1000 * first:.0f}", f"{base[0] / first:.2f}", f"{1000 * each:.1f}", f"{1 / each:.1f}")
        table.add_row(name, *row, f"{base[1] / each:.2f}", weights)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
