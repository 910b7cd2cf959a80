"""EngineArgs: an engine's options before there is an engine, as vLLM's programs write, change and pass them on."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from tilewise.config import EngineConfig
from tilewise.errors import UnknownOption

_DEFAULTS: dict[str, Any] = {
    "generation_config": "auto",
    "override_generation_config": None,
    **{field.name: field.default for field in dataclasses.fields(EngineConfig)},
}
_Fields = dataclasses.make_dataclass(
    "_Fields", [(name, Any, dataclasses.field(default=default)) for name, default in _DEFAULTS.items()]
)


class EngineArgs(_Fields):  # type: ignore[valid-type, misc]
    """Every option of EngineConfig and of vLLM's engine; None = not given. Values are checked when an engine is made.

    `LLM(**dataclasses.asdict(args))`, `LLM(**vars(args))` and `LLM.from_engine_args(args)` are the same.
    """

    def __init__(self, model: str = "demo", **options: Any) -> None:
        for name in options:
            if name not in _DEFAULTS:
                raise UnknownOption.named(name, _DEFAULTS, type(self).__name__)
        super().__init__(model=model, **options)

    @property
    def given(self) -> dict[str, Any]:
        """The options that say something else than their defaults."""
        return {name: value for name, value in vars(self).items() if value is not _DEFAULTS.get(name, None)}

    @classmethod
    def add_cli_args(cls, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """A flag for each option, as `tilewise serve` has it; those not given are None."""
        raise NotImplementedError

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        """Of a namespace, the options that were given; what else it holds is the program's own."""
        return cls(**{name: value for name, value in vars(args).items() if name in _DEFAULTS and value is not None})


class AsyncEngineArgs(EngineArgs):
    """The same for AsyncLLM."""
