"""Flags that verbs share. Those of the engine are made from EngineConfig's fields: one source for flag and help."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
from collections.abc import Callable, Collection
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tilewise.config import EngineConfig
from tilewise.errors import did_you_mean
from tilewise.sampling_params import SamplingParams


class VerbParser(argparse.ArgumentParser):
    """Takes flags between a verb's pictures and its question too; argparse alone takes one run of arguments."""

    takes_all_words = False
    """A verb that reads its words by itself; they are in `words`."""
    _second_pass = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.takes_all_words:
            return argparse.Namespace(
                **{**vars(namespace or argparse.Namespace()), **self._defaults, "words": args}
            ), []
        # The method below calls this one, and takes no verbs of verbs.
        if self._second_pass or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._second_pass = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._second_pass = False
        if unknown:
            near = did_you_mean(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near and '.'}{near}")
        return found, unknown


def add_engine_flags(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Every option of the engine, in groups; or only those named."""
    hints = get_type_hints(EngineConfig)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(EngineConfig):
        if only is not None and field.name not in only:
            continue
        group = field.metadata["group"]
        groups.setdefault(group, parser.add_argument_group(f"{group} options") if group not in groups else None)
        default = "" if field.default is None else f" (default: {field.default})"
        groups[group].add_argument(
            *(f"--{name.replace('_', '-')}" for name in (field.name, field.metadata["alias"]) if name),
            dest=field.name,
            default=argparse.SUPPRESS,
            help=field.metadata["help"].replace("%", "%%") + default,
            **_argument(hints[field.name], field.metadata["read"]),
        )


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's options that were given."""
    names = {field.name for field in dataclasses.fields(EngineConfig)}
    return {name: value for name, value in vars(options).items() if name in names}


def add_sampling_flags(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    group = parser.add_argument_group("answer options")
    group.add_argument(
        "--max-tokens", type=int, metavar="N", default=max_tokens, help=f"longest answer (default: {max_tokens})"
    )
    group.add_argument(
        "--temperature", type=float, metavar="X", default=0.0, help="0 = always the likeliest token (default: 0)"
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="X",
        default=1.0,
        help="draw from the likeliest tokens of this total (default: 1)",
    )
    group.add_argument(
        "--top-k", type=int, metavar="N", default=0, help="draw from this many likeliest tokens; 0 = all (default: 0)"
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", default=1.0, help="above 1 discourages repeating (default: 1)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="makes drawing repeatable")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    group.add_argument(
        "--special-tokens", action="store_true", help="show special tokens, such as <ref> and <box> of boxes"
    )


def sampling_of(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=options.stop,
        skip_special_tokens=not options.special_tokens,
    )


def dashed(argument: str) -> str:
    """`--max_model_len=8` -> `--max-model-len=8`, as vLLM's parser reads it; anything but a flag stays.

    >>> dashed("--max_model_len=a_b")
    '--max-model-len=a_b'
    """
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    flag, dot, key = name.partition(".")
    return flag.replace("_", "-") + dot + key + equals + value


def _argument(hint: Any, read: Callable[[str], int] | None) -> dict[str, Any]:
    """argparse's keywords for a field's type, or for a number that `read` makes of a text."""
    if read is not None:
        return {"type": _amount(read), "metavar": "N"}
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is dict:
        return {"type": json_object, "metavar": "JSON"}
    if get_origin(hint) is tuple:
        return {"nargs": "+", "type": get_args(hint)[0]}
    return {"type": hint, "metavar": {int: "N", float: "X"}.get(hint, "TEXT")}


def _amount(read: Callable[[str], int]) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def json_object(text: str) -> dict[str, Any]:
    """JSON, or the short form `image=4,video=0`."""
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else dict(_pair(item) for item in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is neither JSON such as {{"image": 4}} nor image=4') from None
    return dict(value)


def _pair(item: str) -> tuple[str, Any]:
    name, _, value = item.partition("=")
    return name.strip(), json.loads(value)
