"""Options of data sets, under the names of vLLM's flags: what is drawn, and which file is read. Loads no numpy."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from tilewise.bench import DATASETS, check_at_least, known
from tilewise.bench.requests import MediaKind
from tilewise.errors import InvalidConfig
from tilewise.option import option

NOT_DOWNLOADED = "data sets are not downloaded: save one as JSON lines, for --dataset-name custom or custom_mm"
_FAR = ("hf", "sonnet", "burstgpt", "spec_bench", "speed_bench", "custom_audio", "timed_trace")
_REFUSED = {**dict.fromkeys(_FAR, NOT_DOWNLOADED), "random-rerank": "InternVL does not rank"}
_DRAWN, _OTHERS = "random and random-mm", "other data sets"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Media of one size; with one frame they are pictures."""

    height: int
    width: int
    frames: int
    weight: float

    @property
    def kind(self) -> MediaKind:
        return "image" if self.frames == 1 else "video"


_DEFAULT_BUCKETS = (Bucket(256, 256, 1, 0.5), Bucket(720, 1280, 1, 0.5))


def read_buckets(text: str) -> tuple[Bucket, ...]:
    """Read `{(256, 256, 1): 0.5, (720, 1280, 1): 0.5}`: height, width, frames, probability. Raises InvalidConfig."""
    try:
        return tuple(_bucket(key, weight) for key, weight in ast.literal_eval(text).items())
    except (ValueError, SyntaxError, TypeError, AttributeError):
        raise InvalidConfig(
            f"--random-mm-bucket-config is like '{{(256, 256, 1): 0.5, (720, 1280, 1): 0.5}}', keys are height, width "
            f"and frames, got {text!r}."
        ) from None


def _bucket(key: Any, weight: Any) -> Bucket:
    height, width, frames = (int(number) for number in (ast.literal_eval(key) if isinstance(key, str) else key))
    if min(height, width, frames) < 1 or float(weight) < 0:
        raise ValueError
    return Bucket(height, width, frames, float(weight))


@dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Options of requests that are drawn. Raises InvalidConfig for those that nothing can be drawn by."""

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

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_media()
        check_at_least(1, num_prompts=self.num_prompts)

    @property
    def mean_input(self) -> int:
        return self.random_input_len if self.input_len is None else self.input_len

    @property
    def mean_output(self) -> int:
        return self.random_output_len if self.output_len is None else self.output_len

    def bounds(self, mean: int) -> tuple[int, int]:
        """Return the shortest and the longest length that is drawn where this is the mean."""
        return _around(mean, self.random_range_ratio)

    @property
    def media_bounds(self) -> tuple[int, int]:
        """Fewest and most media of a request."""
        allowed = sum(self.limits[kind] for kind in {bucket.kind for bucket in self.buckets})
        fewest, most = _around(self.random_mm_base_items_per_request, self.random_mm_num_mm_items_range_ratio)
        return fewest, min(allowed, most)

    @property
    def limits(self) -> dict[str, int]:
        """Most media of each kind in a request."""
        given = self.random_mm_limit_mm_per_prompt
        return {"image": 255, "video": 1} if given is None else given

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Sizes of media that are drawn at all."""
        text = self.random_mm_bucket_config
        return tuple(bucket for bucket in (read_buckets(text) if text else _DEFAULT_BUCKETS) if bucket.weight > 0)

    def _check_lengths(self) -> None:
        spread, prefix = self.random_range_ratio, self.random_prefix_len
        if not 0 <= spread < 1:
            raise InvalidConfig(f"--random-range-ratio must be from 0 to below 1, got {spread:g}.")
        if prefix < 0 or prefix + self.bounds(self.mean_input)[0] < 1:
            raise InvalidConfig(
                f"--random-input-len {self.mean_input} with --random-prefix-len {prefix} and --random-range-ratio "
                f"{spread:g} makes empty prompts: ask for at least one token."
            )
        if self.bounds(self.mean_output)[0] < 1:
            raise InvalidConfig(f"--random-output-len {self.mean_output} asks for empty answers: at least one token.")

    def _check_media(self) -> None:
        items, spread = self.random_mm_base_items_per_request, self.random_mm_num_mm_items_range_ratio
        if items < 0 or not 0 <= spread <= 1:
            raise InvalidConfig(
                f"--random-mm-base-items-per-request {items} must be at least 0, and "
                f"--random-mm-num-mm-items-range-ratio {spread:g} from 0 to 1."
            )
        if not self.buckets:
            raise InvalidConfig("--random-mm-bucket-config has no bucket above 0: give one a probability.")
        if missing := {bucket.kind for bucket in self.buckets} - set(self.limits):
            raise InvalidConfig(f"--random-mm-limit-mm-per-prompt does not say how many of: {', '.join(missing)}.")
        fewest, most = self.media_bounds
        if fewest > most:
            raise InvalidConfig(
                f"--random-mm-limit-mm-per-prompt allows {most} media a request and "
                f"--random-mm-base-items-per-request asks for {fewest}: raise the one or lower the other."
            )


def _around(mean: int, spread: float) -> tuple[int, int]:
    return math.floor(mean * (1 - spread)), math.ceil(mean * (1 + spread))


@dataclass(frozen=True, kw_only=True)
class DatasetChoice:
    """Options that choose a data set, and those of data sets that are not only drawn.

    Raises InvalidConfig for a file that is missing or too much, and for impossible lengths.
    """

    GROUP: ClassVar = "data set"
    dataset_name: str = option("random", ", ".join(DATASETS), read=known(tuple(DATASETS), _REFUSED), metavar="NAME")
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

    def __post_init__(self) -> None:
        check_at_least(1, prefix_repetition_prefix_len=self.prefix_repetition_prefix_len)
        check_at_least(1, prefix_repetition_num_prefixes=self.prefix_repetition_num_prefixes)
        check_at_least(1, prefix_repetition_output_len=self.prefix_repetition_output_len)
        check_at_least(0, prefix_repetition_suffix_len=self.prefix_repetition_suffix_len)
        if (self.dataset_path is None) == DATASETS[self.dataset_name].reads_file:
            files = tuple(name for name, dataset in DATASETS.items() if dataset.reads_file)
            raise InvalidConfig(
                f"--dataset-name {self.dataset_name} reads a file: name it with --dataset-path."
                if self.dataset_path is None
                else f"--dataset-name {self.dataset_name} reads no file: leave out --dataset-path, or choose {files}."
            )

    @property
    def file_output_len(self) -> int | None:
        """Tokens of each answer to a file's requests, where --output-len does not say; None = as the file says."""
        asked = self.sharegpt_output_len if self.dataset_name == "sharegpt" else self.custom_output_len
        return None if asked == -1 else asked
