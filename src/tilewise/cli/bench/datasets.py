"""Flags of data sets, and the DatasetSource that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tilewise.bench import DATASETS
from tilewise.cli.bench.refused import DATA_SETS, known
from tilewise.option import option

if TYPE_CHECKING:
    from tilewise.bench.datasets import DatasetSource

_DRAWN, _OTHERS = "random and random-mm", "other data sets"


@dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Flags of requests that are drawn: those of random-mm, unless a DatasetChoice says otherwise."""

    GROUP: ClassVar = _DRAWN
    num_prompts: int = option(1000, "requests", "data set")
    seed: int = option(0, "of all that is drawn", "data set")
    input_len: int | None = option(None, "the same as --random-input-len", "data set")
    output_len: int | None = option(None, "tokens of answers, whatever the data set", "data set")
    random_input_len: int = option(1024, "tokens of a prompt's text")
    random_output_len: int = option(128, "tokens of an answer")
    random_prefix_len: int = option(0, "tokens that all prompts begin with", alias="prefix_len")
    random_range_ratio: float = option(0.0, "lengths are drawn evenly from n(1-R) to n(1+R)", metavar="R")
    random_mm_base_items_per_request: int = option(1, "media of a request")
    random_mm_num_mm_items_range_ratio: float = option(0.0, "drawn as above", metavar="R")
    random_mm_limit_mm_per_prompt: dict[str, Any] | None = option(
        None, "most media of a request (default: image=255,video=1)"
    )
    random_mm_bucket_config: str | None = option(
        None,
        "probabilities of (height, width, frames); one frame is a picture, more are a video "
        "(default: {(256, 256, 1): 0.5, (720, 1280, 1): 0.5})",
        metavar="BUCKETS",
    )

    def source(self, choice: DatasetChoice | None = None) -> DatasetSource:
        from tilewise.bench.datasets import DatasetSource
        from tilewise.bench.random_requests import DEFAULT_BUCKETS, Lengths, MediaShape, read_buckets

        lengths = Lengths(
            _first(self.input_len, self.random_input_len),
            _first(self.output_len, self.random_output_len),
            self.random_prefix_len,
            self.random_range_ratio,
        )
        limits = self.random_mm_limit_mm_per_prompt
        media = MediaShape(
            self.random_mm_base_items_per_request,
            self.random_mm_num_mm_items_range_ratio,
            {"image": 255, "video": 1} if limits is None else limits,
            read_buckets(self.random_mm_bucket_config) if self.random_mm_bucket_config else DEFAULT_BUCKETS,
        )
        drawn: dict[str, Any] = {"count": self.num_prompts, "seed": self.seed, "lengths": lengths, "media": media}
        if choice is None:
            return DatasetSource("random-mm", **drawn)
        return DatasetSource(choice.dataset_name, choice.dataset_path, **drawn, **choice.chosen(self.output_len))


@dataclass(frozen=True, kw_only=True)
class DatasetChoice:
    """Flags that choose a data set, and those of data sets that are not only drawn."""

    GROUP: ClassVar = "data set"
    dataset_name: str = option("random", ", ".join(DATASETS), read=known(tuple(DATASETS), DATA_SETS), metavar="NAME")
    dataset_path: Path | None = option(None, "of sharegpt, custom and custom_mm", metavar="FILE")
    no_oversample: bool = option(False, "a file of fewer requests is not gone through again")
    disable_shuffle: bool = option(False, "a file's requests in its own order")
    skip_chat_template: bool = option(
        False,
        "it is always so: a prompt is sent as it is written, and --backend openai-chat sends conversations",
        alias="custom_skip_chat_template",
    )
    sharegpt_output_len: int | None = option(None, "tokens of an answer (default: those of the file's)", _OTHERS)
    custom_output_len: int = option(256, "tokens of an answer; -1 = output_tokens of its line", _OTHERS)
    prefix_repetition_prefix_len: int = option(256, "shared tokens", _OTHERS)
    prefix_repetition_suffix_len: int = option(256, "other tokens", _OTHERS)
    prefix_repetition_num_prefixes: int = option(10, "beginnings", _OTHERS)
    prefix_repetition_output_len: int = option(128, "tokens of an answer", _OTHERS)

    def chosen(self, output_len: int | None) -> dict[str, Any]:
        """Return further fields of the DatasetSource; `output_len` is asked for whatever the data set."""
        from tilewise.bench.random_requests import Repetition

        repetition = Repetition(
            self.prefix_repetition_prefix_len,
            self.prefix_repetition_suffix_len,
            self.prefix_repetition_num_prefixes,
            _first(output_len, self.prefix_repetition_output_len),
        )
        of_file = self.sharegpt_output_len if self.dataset_name == "sharegpt" else self.custom_output_len
        return {
            "output": output_len if output_len is not None else None if of_file == -1 else of_file,
            "shuffle": not self.disable_shuffle,
            "oversample": not self.no_oversample,
            "repetition": repetition,
        }


def _first(general: int | None, own: int) -> int:
    return own if general is None else general
