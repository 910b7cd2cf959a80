"""EngineArgs: an engine's options before there is an engine, as vLLM's programs write, change and pass them on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tilewise.config import EngineConfig
from tilewise.errors import UnknownOption
from tilewise.foreign.engine import ENGINE, IN_A_PROGRAM

_FOREIGN = {entry.name: entry for entry in (*ENGINE, *IN_A_PROGRAM)}
_OWN = {field.name: field for field in dataclasses.fields(EngineConfig)}
_DEFAULTS: dict[str, Any] = {
    **{name: field.default for name, field in _OWN.items()},
    **{name: None for name in _FOREIGN if name not in _OWN},
}
_Options = dataclasses.make_dataclass(
    "_Options", [(name, Any, dataclasses.field(default=default)) for name, default in _DEFAULTS.items()]
)
Parser = TypeVar("Parser", bound=argparse.ArgumentParser)


class EngineArgs(_Options):  # type: ignore[valid-type, misc]
    """Every option of EngineConfig and of vLLM's engine; None = not given. Values are checked when an engine is made.

    `LLM(**dataclasses.asdict(args))`, `LLM(**vars(args))` and `LLM.from_engine_args(args)` are the same.
    """

    def __init__(self, model: str = "demo", **options: Any) -> None:
        """Raises UnknownOption for a name that neither has."""
        for name in options:
            if name not in _DEFAULTS:
                raise UnknownOption.named(name, _DEFAULTS, type(self).__name__)
        super().__init__(model=model, **options)

    @property
    def given(self) -> dict[str, Any]:
        """The options that say something else than their defaults."""
        return {name: value for name, value in vars(self).items() if value is not _DEFAULTS.get(name)}

    @classmethod
    def add_cli_args(cls, parser: Parser) -> Parser:
        """A flag for each option; the program reads them by `from_cli_args`, or passes `vars(args)` to LLM."""
        group = parser.add_argument_group("engine options")
        hints = get_type_hints(EngineConfig)
        for name, field in _OWN.items():
            names = [text for text in (name, field.metadata["alias"]) if text]
            _add(group, names, hints[name], field.default, field.metadata["help"], field.metadata["read"])
        for name, entry in _FOREIGN.items():
            if name not in _OWN:
                _add(group, [name], entry.hint, None, f"{entry.fate}: {entry.says}", None)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        """Takes the engine's options out of a namespace; what else it holds is the program's own."""
        return cls(**{name: value for name, value in vars(args).items() if name in _DEFAULTS and value is not None})


class AsyncEngineArgs(EngineArgs):
    """EngineArgs for AsyncLLM."""


class FlexibleArgumentParser(argparse.ArgumentParser):
    """Takes `--max_model_len` for `--max-model-len`."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._known(word) for word in words], namespace)

    def _known(self, word: str) -> str:
        """A flag as it was added: with dashes, or with underscores if it was so."""
        return word if word.partition("=")[0] in self._option_string_actions else dashed(word)


def _add(
    group: Any, names: Sequence[str], hint: Any, default: Any, text: str, read: Callable[[str], int] | None
) -> None:
    flags = [f"--{name.replace('_', '-')}" for name in names]
    group.add_argument(*flags, dest=names[0], default=default, help=text.replace("%", "%%"), **argument_of(hint, read))


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


def argument_of(hint: Any, read: Callable[[str], int] | None) -> dict[str, Any]:
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
