"""Milliseconds to choose the tokens of one step: the batched sampler beside one that goes row by row.

    python benchmarks/sampler.py [--rows 1 8 64] [--vocabulary 151674] [--runs 9] [--threads 1]

Row by row is what the sampler was before: a torch generator a row, a full sort for top-p. Logits are the logs of Zipf
shares in random order (exponent 1.5, so that top-p 0.9 keeps some sixty tokens, as answers of language models do);
`flat` has normal ones, of which top-p keeps a third of the vocabulary: the worst case for both.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tilewise.platforms.cpu import CpuPlatform
from tilewise.runner.batch import Tables
from tilewise.runner.sampler import sample
from tilewise.sampling_params import SamplingParams
from tilewise.step import Admission, Limits, Work

LENGTH, PROMPT = 600, 400
OPS = CpuPlatform().ops()
KINDS: dict[str, list[SamplingParams]] = {
    "greedy": [SamplingParams(temperature=0)],
    "temperature": [SamplingParams()],
    "top-k 50": [SamplingParams(top_k=50)],
    "top-p 0.9": [SamplingParams(top_p=0.9)],
    "top-p 0.9, flat": [SamplingParams(top_p=0.9)],
    "mixed": [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, repetition_penalty=1.1),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=0.7, top_k=50, presence_penalty=0.5),
        SamplingParams(temperature=0, logprobs=5),
        SamplingParams(),
        SamplingParams(temperature=0.2, min_p=0.05),
        SamplingParams(temperature=0),
    ],
}


def row_by_row(logits: Tensor, params: list[SamplingParams], tokens: Tensor) -> list[int]:
    return [choose(row, one, own, number) for number, (row, one, own) in enumerate(zip(logits, params, tokens))]  # noqa: B905


def choose(row: Tensor, sampling: SamplingParams, tokens: Tensor, seed: int) -> int:
    raw = row
    if sampling.penalised:
        repeated = torch.zeros_like(row, dtype=torch.bool).index_fill_(0, tokens, True)
        scaled = torch.where(row > 0, row / sampling.repetition_penalty, row * sampling.repetition_penalty)
        counts = torch.bincount(tokens[PROMPT:], minlength=len(row))
        row = torch.where(repeated, scaled, row) - sampling.presence_penalty * (counts > 0)
    if sampling.greedy:
        token = int(row.argmax())
    else:
        probabilities = truncate(row / sampling.temperature, sampling).softmax(-1)
        noise = torch.empty_like(probabilities).exponential_(generator=torch.Generator().manual_seed(seed))
        token = int((probabilities / noise).argmax())
    if sampling.logprobs is not None:
        scores = raw.log_softmax(-1)
        _ = int((scores > scores[token]).sum()), scores.topk(sampling.logprobs).values.tolist()
    return token


def truncate(row: Tensor, sampling: SamplingParams) -> Tensor:
    if sampling.top_k > 0:
        row = row.masked_fill(row < row.topk(sampling.top_k).values[-1], float("-inf"))
    if sampling.min_p > 0:
        probabilities = row.softmax(-1)
        row = row.masked_fill(probabilities < sampling.min_p * probabilities.max(), float("-inf"))
    if sampling.top_p < 1:
        ordered, order = row.sort(descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        row = row.scatter(0, order, ordered.masked_fill(beyond, float("-inf")))
    return row


def median_ms(call: Callable[[], object], runs: int) -> float:
    call()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--vocabulary", type=int, default=151_674)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"command: python {' '.join(sys.argv)}")
    print(f"machine: {processor()}, {options.threads} thread(s), torch {torch.__version__}")
    print(f"median ms of {options.runs} runs, vocabulary {options.vocabulary}\n")
    print(f"{'':17s} {'rows':>4s} {'row by row':>11s} {'batched':>9s} {'times faster':>13s}")
    for kind, rows in ((kind, rows) for kind in KINDS for rows in options.rows):
        old, new = measure(kind, rows, options.vocabulary, options.runs)
        print(f"{kind:17s} {rows:4d} {old:11.2f} {new:9.2f} {old / new:13.1f}")


@torch.inference_mode()
def measure(kind: str, rows: int, vocabulary: int, runs: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    if kind.endswith("flat"):
        logits = torch.randn(rows, vocabulary, generator=generator)
    else:
        falling = -1.5 * torch.arange(1, vocabulary + 1).log()
        logits = torch.stack([falling[torch.randperm(vocabulary, generator=generator)] for _ in range(rows)])
    params = (KINDS[kind] * rows)[:rows]
    tables = Tables(Limits(rows, 1024, 4096, 16, 2, 256, 1, 1, 1), torch.device("cpu"))
    tokens = torch.randint(vocabulary, (rows, LENGTH), generator=generator)
    for slot in range(1, rows + 1):
        own = tuple(tokens[slot - 1].tolist())
        tables.admit(Admission(slot, own, PROMPT, params[slot - 1], slot, frozenset()))
    work = [Work(slot, LENGTH - 1, 1, samples=True) for slot in range(1, rows + 1)]
    old = median_ms(lambda: row_by_row(logits, params, tokens), runs)
    return old, median_ms(lambda: sample(logits, work, tables, OPS).wait(), runs)


def processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
