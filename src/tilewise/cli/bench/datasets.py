"""Flags of data sets, and the DatasetSource that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewise.bench import DATASETS
from tilewise.cli.bench.refused import DATA_SETS, Known
from tilewise.cli.options import json_object

if TYPE_CHECKING:
    from tilewise.bench.datasets import DatasetSource


def add_dataset_flags(parser: argparse.ArgumentParser, prompts: int, name: str | None = "random") -> None:
    """Add flags that choose requests. Without a `name` no data set can be chosen: requests are those of random-mm."""
    group = parser.add_argument_group("data set options")
    if name is not None:
        group.add_argument(
            "--dataset-name",
            type=Known(tuple(DATASETS), DATA_SETS),
            default=name,
            metavar="NAME",
            help=f"{', '.join(DATASETS)} (default: {name})",
        )
        group.add_argument("--dataset-path", type=Path, metavar="FILE", help="of sharegpt, custom and custom_mm")
        group.add_argument(
            "--no-oversample", action="store_true", help="a file of fewer requests is not gone through again"
        )
        group.add_argument("--disable-shuffle", action="store_true", help="a file's requests in its own order")
        group.add_argument(
            *("--skip-chat-template", "--custom-skip-chat-template"),
            action="store_true",
            help="it is always so: a prompt is sent as it is written, and --backend openai-chat sends conversations",
        )
    group.add_argument("--num-prompts", type=int, default=prompts, metavar="N", help=f"requests (default: {prompts})")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: 0)")
    group.add_argument("--input-len", type=int, metavar="N", help="the same as --random-input-len")
    group.add_argument("--output-len", type=int, metavar="N", help="tokens of answers, whatever the data set")
    _add_random_flags(parser)
    if name is not None:
        _add_other_flags(parser)


def _add_random_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of random and random-mm")
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    group.add_argument("--random-input-len", default=1024, help="tokens of a prompt's text (default: 1024)", **number)
    group.add_argument("--random-output-len", default=128, help="tokens of an answer (default: 128)", **number)
    group.add_argument(
        *("--random-prefix-len", "--prefix-len"),
        default=0,
        help="tokens that all prompts begin with (default: 0)",
        **number,
    )
    group.add_argument(
        "--random-range-ratio",
        type=float,
        default=0.0,
        metavar="R",
        help="lengths are drawn evenly from n(1-R) to n(1+R) (default: 0)",
    )
    group.add_argument(
        "--random-mm-base-items-per-request", default=1, help="media of a request (default: 1)", **number
    )
    group.add_argument(
        "--random-mm-num-mm-items-range-ratio", type=float, default=0.0, metavar="R", help="drawn as above (default: 0)"
    )
    group.add_argument(
        "--random-mm-limit-mm-per-prompt",
        type=json_object,
        default={"image": 255, "video": 1},
        metavar="JSON",
        help="most media of a request (default: image=255,video=1)",
    )
    group.add_argument(
        "--random-mm-bucket-config",
        metavar="BUCKETS",
        help="probabilities of (height, width, frames); one frame is a picture, more are a video "
        "(default: {(256, 256, 1): 0.5, (720, 1280, 1): 0.5})",
    )


def _add_other_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of other data sets")
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    group.add_argument("--sharegpt-output-len", help="tokens of an answer (default: those of the file's)", **number)
    group.add_argument(
        "--custom-output-len",
        default=256,
        help="tokens of an answer; -1 = output_tokens of its line (default: 256)",
        **number,
    )
    group.add_argument("--prefix-repetition-prefix-len", default=256, help="shared tokens (default: 256)", **number)
    group.add_argument("--prefix-repetition-suffix-len", default=256, help="other tokens (default: 256)", **number)
    group.add_argument("--prefix-repetition-num-prefixes", default=10, help="beginnings (default: 10)", **number)
    group.add_argument(
        "--prefix-repetition-output-len", default=128, help="tokens of an answer (default: 128)", **number
    )


def source_of(options: argparse.Namespace, name: str | None = None) -> DatasetSource:
    from tilewise.bench.datasets import DatasetSource
    from tilewise.bench.random_requests import DEFAULT_BUCKETS, Lengths, MediaShape, Repetition, read_buckets

    buckets = options.random_mm_bucket_config
    lengths = Lengths(
        _first(options.input_len, options.random_input_len),
        _first(options.output_len, options.random_output_len),
        options.random_prefix_len,
        options.random_range_ratio,
    )
    media = MediaShape(
        options.random_mm_base_items_per_request,
        options.random_mm_num_mm_items_range_ratio,
        options.random_mm_limit_mm_per_prompt,
        read_buckets(buckets) if buckets else DEFAULT_BUCKETS,
    )
    drawn: dict[str, Any] = {"count": options.num_prompts, "seed": options.seed, "lengths": lengths, "media": media}
    if name is not None:
        return DatasetSource(name, **drawn)
    repetition = Repetition(
        options.prefix_repetition_prefix_len,
        options.prefix_repetition_suffix_len,
        options.prefix_repetition_num_prefixes,
        _first(options.output_len, options.prefix_repetition_output_len),
    )
    return DatasetSource(
        options.dataset_name,
        options.dataset_path,
        output=_of_file(options),
        shuffle=not options.disable_shuffle,
        oversample=not options.no_oversample,
        repetition=repetition,
        **drawn,
    )


def _first(general: int | None, own: int) -> int:
    return own if general is None else general


def _of_file(options: argparse.Namespace) -> int | None:
    """Return the tokens of each answer to a file's requests; None = as the file says."""
    if options.output_len is not None:
        return int(options.output_len)
    length = options.sharegpt_output_len if options.dataset_name == "sharegpt" else options.custom_output_len
    return None if length in (None, -1) else int(length)
