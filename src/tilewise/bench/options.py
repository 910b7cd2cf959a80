"""Options of the benchmarks that ask one thing again and again, under the names of vLLM's flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tilewise.bench import check_at_least
from tilewise.errors import InvalidConfig
from tilewise.option import option


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    GROUP: ClassVar = "batches"
    input_len: int = option(32, "tokens of a prompt")
    output_len: int = option(128, "tokens of an answer")
    batch_size: int = option(8, "prompts")
    n: int = option(1, "answers to each")
    use_beam_search: bool = option(False, "by beam search of width n")
    num_iters_warmup: int = option(10, "batches that do not count")
    num_iters: int = option(30, "batches that do")

    def __post_init__(self) -> None:
        check_at_least(1, input_len=self.input_len, output_len=self.output_len, batch_size=self.batch_size, n=self.n)
        check_at_least(1, num_iters=self.num_iters)
        check_at_least(0, num_iters_warmup=self.num_iters_warmup)


@dataclass(frozen=True, kw_only=True)
class StartupOptions:
    GROUP: ClassVar = "starts"
    num_iters_cold: int = option(3, "cold starts")
    num_iters_warmup: int = option(1, "starts before the warm ones, which do not count")
    num_iters_warm: int = option(3, "warm starts")

    def __post_init__(self) -> None:
        check_at_least(1, num_iters_cold=self.num_iters_cold, num_iters_warm=self.num_iters_warm)
        check_at_least(0, num_iters_warmup=self.num_iters_warmup)


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    GROUP: ClassVar = "batches"
    batch_sizes: tuple[int, ...] = option((1, 2, 4, 8, 16), "tiles of a batch", metavar="N")
    num_iters_warmup: int = option(2, "batches that do not count")
    num_iters: int = option(10, "batches that do")
    seed: int = option(0, "of the noise")

    def __post_init__(self) -> None:
        check_at_least(1, num_iters=self.num_iters)
        check_at_least(0, num_iters_warmup=self.num_iters_warmup)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InvalidConfig(f"--batch-sizes takes whole numbers above 0, got {self.batch_sizes}.")
