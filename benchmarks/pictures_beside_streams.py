"""Seconds between the tokens of streams, alone and while pictures come in beside them.

    python benchmarks/pictures_beside_streams.py MODEL [--streams 8] [--tokens 100] [--encode-budget 0.25]
        [--vision-workers 1]

Streams of text begin together and answer with so many tokens each. The second time, a picture of so many tiles and a
thumbnail, never seen before, is asked about when each has ten tokens, and the next one as soon as that is answered.
Printed are the median, the 99th percentile and the longest of the times between tokens of a stream, and the first token
of the pictures. To compare two commits, run both in turns.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tilewise import LLM, SamplingParams
from tilewise.bench.figures import Spread
from tilewise.entrypoints.llm_engine import LLMEngine


class Load:
    """Streams in an engine, and pictures beside them."""

    def __init__(self, engine: LLMEngine, args: argparse.Namespace) -> None:
        self.engine, self.args = engine, args
        self.chance = np.random.default_rng(time.time_ns())
        self.pictures = 0
        self.asked: dict[str, float] = {}
        self.first_tokens: list[float] = []

    def run(self, pictures: bool) -> list[float]:
        """Seconds between tokens, of all streams."""
        sampling = SamplingParams(temperature=0, max_tokens=self.args.tokens, ignore_eos=True)
        for stream in range(self.args.streams):
            prompt = self.chance.integers(1000, 50_000, 32).tolist()
            self.engine.add_request(f"stream{stream}", {"prompt_token_ids": prompt}, sampling)
        last, between, counts = {}, [], dict.fromkeys(range(self.args.streams), 0)
        while any(name.startswith("stream") for name in self.engine._running):
            if pictures and not self.asked and min(counts.values()) >= 10:
                self._ask()
            for result in self.engine.step():
                now, name = time.perf_counter(), result.request_id
                if name in self.asked:
                    self.first_tokens.append(now - self.asked.pop(name))
                elif name.startswith("stream"):
                    counts[int(name[6:])] += 1
                    if name in last:
                        between.append(now - last[name])
                    last[name] = now
        self.engine.abort_request(list(self.asked))
        self.asked.clear()
        while self.engine.llm._core.has_unfinished:
            self.engine.llm._core.step()
        return between

    def _ask(self) -> None:
        """A picture of noise, as wide as its tiles."""
        pixels = self.chance.integers(0, 256, (448 * self.args.rows, 448 * self.args.columns, 3), np.uint8)
        name = f"picture{self.pictures}"
        self.pictures += 1
        self.asked[name] = time.perf_counter()
        prompt = {"prompt": "<image>\nWhat?", "multi_modal_data": {"image": Image.fromarray(pixels)}}
        self.engine.add_request(name, prompt, SamplingParams(temperature=0, max_tokens=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--columns", type=int, default=4, help="of tiles of a picture")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--encode-budget", type=float, default=0.25, help="tiles behind a step")
    parser.add_argument("--vision-workers", type=int, default=0)
    args = parser.parse_args()
    lanes = {"encode_budget": args.encode_budget, "vision_workers": args.vision_workers}
    llm = LLM(args.model, max_model_len=4096, max_num_seqs=16, **lanes)
    load = Load(LLMEngine(llm), args)
    load.run(pictures=False)  # once, so that nothing is done for the first time
    found = {"alone": load.run(pictures=False), "with pictures": load.run(pictures=True)}
    table = Table("streams", "tokens", "median, ms", "p99, ms", "longest, ms")
    for name, between in found.items():
        spread = Spread.of(between, (99, 100)).scaled(1000)
        figures = (spread.median, *spread.by_percent().values())
        table.add_row(name, str(len(between)), *(f"{value:.0f}" for value in figures))
    console = Console()
    console.print(table)
    shown = ", ".join(f"{seconds:.1f}" for seconds in load.first_tokens)
    console.print(f"First tokens of pictures of {args.columns * args.rows + 1} tiles, s: {shown or 'none in time'}")


if __name__ == "__main__":
    main()
