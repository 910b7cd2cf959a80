"""Options that benchmarks take as they are, under the names of vLLM's flags. Nothing heavy is loaded here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tilewise.bench import check_at_least
from tilewise.bench.dataset_options import RandomOptions
from tilewise.errors import InvalidConfig, TilewiseError
from tilewise.option import option

if TYPE_CHECKING:
    from tilewise.bench.results import RunFacts


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
class ProcessorOptions(RandomOptions):
    num_prompts: int = option(10, "requests", "data set")
    num_warmups: int = option(1, "requests before", "data set")
    metric_percentiles: str = option("99", "such as 50,90,99", "result", metavar="LIST")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, num_warmups=self.num_warmups)


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


class NotSaved(TilewiseError):
    """A result could not be written."""


@dataclass(frozen=True, kw_only=True)
class SavingOptions:
    """Options about the results of runs on a server. Raises InvalidConfig for metadata that are no pairs."""

    GROUP: ClassVar = "result"
    percentile_metrics: str = option(
        "ttft,tpot,itl",
        "what is printed, of ttft, tpot, itl, e2el, client_queue_time, e2el_including_client_queue",
        metavar="NAMES",
    )
    metric_percentiles: str = option("99", "such as 50,90,99", metavar="LIST")
    goodput: tuple[str, ...] = option((), "goals of ttft, tpot, e2el that good answers keep", metavar="NAME:MS")
    save_result: bool = option(False, "save the figures as JSON")
    save_detailed: bool = option(False, "with those of every request")
    append_result: bool = option(False, "save them behind what the file has, as a line")
    result_dir: Path = option(Path(), "where figures are saved", metavar="FOLDER")
    result_filename: str | None = option(
        None,
        "files of several loads get RATEqps[-concurrencyN] behind it "
        "(default: LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json)",
        metavar="NAME",
    )
    metadata: tuple[str, ...] = option((), "further fields of the JSON", metavar="KEY=VALUE", bare=())
    label: str | None = option(None, "in the JSON and in its name (default: the backend)")
    plot: Path | None = option(None, "draw latency against load, as PNG (needs tilewise[plot])", metavar="FILE")
    disable_tqdm: bool = option(False, "no progress bar")

    def __post_init__(self) -> None:
        read_pairs(self.metadata, "--metadata")

    def path(self, about: RunFacts, now: datetime, runs: int = 1, repeats: int = 0) -> Path:
        """Return the file of a result. A name that `runs` share gets the load of each, unless they append to one file.

        `repeats` is how many of the runs before had the same load.
        """
        load = about.load.name + (f"-{repeats + 1}" if repeats else "")
        if self.result_filename is None:
            model = about.model.split("/")[-1]
            return self.result_dir / f"{self.label or about.backend}-{load}-{model}-{now:%Y%m%d-%H%M%S}.json"
        path = self.result_dir / self.result_filename
        return path if runs == 1 or self.append_result else path.with_name(f"{path.stem}-{load}{path.suffix}")


def write_result(result: dict[str, Any], path: Path, append: bool = False) -> None:
    """Write a result as JSON, or append it as a line. Raises NotSaved."""
    text = json.dumps(result)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write("\n" + text if file.tell() else text)
    except OSError as error:
        raise NotSaved(
            f"The result could not be saved in {path}: {error.strerror or error}. Name another folder with "
            "--result-dir; the table above is complete."
        ) from None


def read_pairs(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """Read `KEY=VALUE ...`. Raises InvalidConfig."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidConfig(f"{flag} takes KEY=VALUE, got {pair!r}.")
        found[key.strip()] = value.strip()
    return found
