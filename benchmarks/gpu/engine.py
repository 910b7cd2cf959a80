"""One model in one engine: start, first tokens, streams, pictures beside streams. Parts named after models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from benchmarks.gpu import idle
from benchmarks.gpu.items import Item
from benchmarks.gpu.models import Model
from benchmarks.gpu.ops import left_out
from benchmarks.gpu.rows import Figure, Note, Row, median, milliseconds
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.streams import Streams
from benchmarks.gpu.timer import Timer
from PIL import Image

from tilewise import LLM, SamplingParams
from tilewise.bench.figures import Spread
from tilewise.plan.floors import RankWork

STREAMS = (1, 8, 64)


def items(model: Model, whole: bool, setup: Setup) -> Iterator[Item]:
    """`whole`: also what tells little about how weights are kept."""
    bench = EngineBench(model, setup)
    yield Item("start", bench.start, needed=True)
    for count in STREAMS:
        yield Item(f"decode, {count} streams", partial(bench.decode, count))
    yield Item("first tokens", bench.first_tokens)
    if whole:
        yield Item("known picture", bench.known_picture)
        yield Item("tower", bench.tower)
        yield Item("streams and pictures", bench.streams_and_pictures)
        yield Item("idle", bench.idle)
        yield Item("kernels", bench.kernels)
    yield Item("left to torch", bench.left_to_torch)


def start_items(model: Model, setup: Setup) -> Iterator[Item]:
    """Only the start, where another process has compiled what there is to compile."""
    yield Item("start", EngineBench(model, setup).start)


class EngineBench:
    def __init__(self, model: Model, setup: Setup) -> None:
        self.model, self.setup = model, setup
        self.chance = np.random.default_rng(setup.seed)
        self.repeats = setup.sized(5, 1)
        self.llm: LLM

    def start(self) -> Iterator[Row]:
        folder = self.model.write(self.setup.folder / self.model.name, self.setup.tiny)
        started = time.perf_counter()
        self.llm = LLM(
            str(folder),
            device=self.setup.device,
            dtype="bfloat16",
            load_format="dummy",
            quantization=self.model.quantization,
            max_model_len=self.setup.sized(8192, 1024),
            max_num_seqs=max(STREAMS),
            use_tqdm_on_load=False,
        )
        made = time.perf_counter()
        self.answer(self.text(8), 1)
        answered = time.perf_counter()
        yield Figure("start to first answer", answered - started, "s")
        yield Figure("start: LLM(...)", made - started, "s")
        yield Figure("start: first answer", answered - made, "s")
        reasons = self.llm.resolved.reasons
        yield Note("resolved", "\n".join(f"{name}: {reason}" for name, reason in reasons.items()))
        if self.setup.on_gpu:
            yield Figure("memory of the device in use", torch.cuda.max_memory_reserved() / 1e9, "GB")

    @cached_property
    def work(self) -> RankWork:
        folder = self.setup.folder / self.model.name
        return self.model.work(folder, self.setup.platform())

    def text(self, tokens: int) -> dict[str, Any]:
        """A prompt that nothing knows."""
        return {"prompt_token_ids": self.chance.integers(10, 250, tokens).tolist()}

    def picture(self, columns: int, rows: int) -> dict[str, Any]:
        """So many tiles of noise, and a thumbnail where there are several."""
        side = self.llm.inputs.spec.tiling.tile_size
        pixels = self.chance.integers(0, 256, (side * rows, side * columns, 3), np.uint8)
        return self.about(Image.fromarray(pixels), "What is it?")

    def about(self, picture: Image.Image, question: str) -> dict[str, Any]:
        return {"prompt": f"<image>\n{question}", "multi_modal_data": {"image": picture}}

    def answer(self, prompt: dict[str, Any], tokens: int) -> Any:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return self.llm.generate([prompt], params, use_tqdm=False)[0]

    def decode(self, count: int) -> Iterator[Row]:
        prompt, tokens = self.setup.sized(256, 16), self.setup.sized(64, 6)
        streams = Streams(self.llm)
        rates, between = [], []
        for _ in range(min(3, self.repeats)):
            seen = streams.run([self.text(prompt) for _ in range(count)], tokens)
            rates.append(seen.rate)
            between += seen.between
        floor = self.work.decode(count, prompt + tokens // 2)
        yield median(f"decode, {count} streams", rates, "tokens/s", [floor], tokens=count)
        yield milliseconds(f"token of a stream, {count} streams", between, [floor])

    def first_tokens(self) -> Iterator[Row]:
        yield from self._first("first token, 1 tile", partial(self.picture, 1, 1))
        yield from self._first("first token, 13 tiles", partial(self.picture, 4, 3))
        length = self.setup.sized(3400, 200)
        yield from self._first(f"first token, text of {length}", partial(self.text, length))

    def _first(self, what: str, prompt: Callable[[], dict[str, Any]]) -> Iterator[Row]:
        """Wall time of `generate` with one token, its host's part included."""
        self.answer(prompt(), 1)
        seconds, before, output = [], [], None
        for _ in range(self.repeats):
            asked = prompt()
            started = time.perf_counter()
            output = self.answer(asked, 1)
            seconds.append(time.perf_counter() - started)
            before.append(output.timing.inputs.total)
        assert output is not None
        usage = output.usage
        steps = -(-usage.prompt_tokens // self.llm.config.max_num_batched_tokens)
        works = [self.work.tiles(usage.tiles)] if usage.tiles else []
        yield milliseconds(what, seconds, [*works, self.work.prompt(usage.prompt_tokens, steps)])
        yield milliseconds(f"{what}: of which inputs, on the host", before)

    def known_picture(self) -> Iterator[Row]:
        """Another question about a picture that was seen: no tile is encoded, and what stands before is known."""
        seconds = []
        for _ in range(self.repeats + 1):
            asked = self.picture(4, 3)
            self.answer(asked, 1)
            again = self.about(asked["multi_modal_data"]["image"], "And what else?")
            started = time.perf_counter()
            self.answer(again, 1)
            seconds.append(time.perf_counter() - started)
        yield milliseconds("first token, known picture of 13 tiles", seconds[1:])

    @torch.inference_mode()
    def tower(self) -> Iterator[Row]:
        side = self.llm.inputs.spec.tiling.tile_size
        model, device = self.llm._core._runner, self.setup.platform().device  # type: ignore[union-attr]
        timer, encode = Timer(device), idle.local(model)._model.encoder
        for tiles in (1, 13):
            pixels = torch.randint(0, 256, (tiles, side, side, 3), dtype=torch.uint8, device=device)
            spent = timer.seconds(partial(encode, pixels))
            yield milliseconds(f"tower, {tiles} tiles", [spent], [self.work.tiles(tiles)])

    def streams_and_pictures(self) -> Iterator[Row]:
        prompt, tokens = self.setup.sized(256, 16), self.setup.sized(160, 60)
        streams, count = Streams(self.llm), 8
        for name, pictures in (("alone", 0), ("beside pictures of 13 tiles", self.setup.sized(16, 2))):
            asked = [self.text(prompt) for _ in range(count)]
            seen = streams.run(asked, tokens, [self.picture(4, 3) for _ in range(pictures)])
            for percent, value in Spread.of(seen.between, (50, 99)).scaled(1000).by_percent("p").items():
                yield Figure(f"between tokens of 8 streams, {name}, {percent}", value, "ms", runs=len(seen.between))
            if seen.first_tokens:
                yield milliseconds("first token, 13 tiles beside 8 streams", seen.first_tokens)

    def idle(self) -> Iterator[Row]:
        prompt, tokens = self.setup.sized(256, 16), self.setup.sized(48, 6)
        asked = [self.text(prompt) for _ in range(max(STREAMS))]
        with idle.StepTimes(self.llm) as times:
            Streams(self.llm).run(asked, tokens)
        # Those before all streams decode, and those in which they end one after the other, are no steady ones.
        share = times.idle(last=self.setup.sized(32, 4), but=self.setup.sized(6, 2))
        yield Figure(f"idle between steps, {max(STREAMS)} streams", 100 * share, "%")

    def left_to_torch(self) -> Iterator[Row]:
        runner = idle.local(self.llm._core._runner)  # type: ignore[union-attr]
        yield from left_out("engine", runner._model.ops)

    def kernels(self) -> Iterator[Row]:
        """What the device does in steady decode, and in the first token of a picture."""
        prompt, tokens = self.setup.sized(256, 16), self.setup.sized(40, 6)
        asked = [self.text(prompt) for _ in range(max(STREAMS))]
        streams = Streams(self.llm)
        with idle.Trace(self.setup.on_gpu) as trace:
            streams.run(asked, tokens, steady=(trace.begin, trace.end))
        yield Figure(f"idle between kernels, {max(STREAMS)} streams, traced", 100 * trace.idle, "%")
        yield Note(f"kernels of {max(STREAMS)} streams", trace.table())
        asked_about = self.picture(4, 3)
        with idle.Trace(self.setup.on_gpu) as trace:
            trace.begin()
            self.answer(asked_about, 1)
            trace.end()
        yield Note("kernels of a first token, 13 tiles", trace.table())
