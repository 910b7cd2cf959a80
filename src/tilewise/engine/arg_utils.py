"""EngineArgs: an engine's options before there is an engine, as vLLM's programs write, change and pass them on."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints

from tilewise.config import EngineConfig
from tilewise.errors import UnknownOption
from tilewise.foreign.table import PROGRAM
from tilewise.option import argument_of, dashed

_FOREIGN = {entry.name: entry for entry in PROGRAM}
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
        """Raise UnknownOption for a name that is an option of neither."""
        for name in options:
            if name not in _DEFAULTS:
                raise UnknownOption.named(name, _DEFAULTS, type(self).__name__)
        super().__init__(model=model, **options)

    @property
    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {name: value for name, value in vars(self).items() if value is not _DEFAULTS.get(name)}

    @classmethod
    def add_cli_args(cls, parser: Parser) -> Parser:
        """Add a flag for each option; the program reads them by `from_cli_args`, or passes `vars(args)` to LLM."""
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
        """Take the engine's options out of a namespace; what else it holds is the program's own."""
        return cls(**{name: value for name, value in vars(args).items() if name in _DEFAULTS and value is not None})


class AsyncEngineArgs(EngineArgs):
    """EngineArgs for AsyncLLM."""


class FlexibleArgumentParser(argparse.ArgumentParser):
    """An argument parser that takes `--max_model_len` for `--max-model-len`."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._known(word) for word in words], namespace)

    def _known(self, word: str) -> str:
        """Return a flag as it was added: with underscores if it was so, else with dashes."""
        return word if word.partition("=")[0] in self._option_string_actions else dashed(word)


def _add(
    group: Any, names: Sequence[str], hint: Any, default: Any, text: str, read: Callable[[str], int] | None
) -> None:
    flags = [f"--{name.replace('_', '-')}" for name in names]
    group.add_argument(*flags, dest=names[0], default=default, help=text.replace("%", "%%"), **argument_of(hint, read))
