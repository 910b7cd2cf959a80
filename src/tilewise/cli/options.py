"""Flags that verbs share. Those of the engine are made from EngineConfig's fields: one source for flag and help."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection, Sequence
from typing import Any

from tilewise.cli.flags.flag import BadUsage, Flag
from tilewise.cli.flags.help import sections_of
from tilewise.cli.flags.parse import CommandLine, FlagIndex
from tilewise.cli.flags.table import flag_of, names_of, option_flags
from tilewise.config import EngineConfig
from tilewise.errors import did_you_mean
from tilewise.foreign.table import PROGRAM
from tilewise.foreign.translate import translate
from tilewise.ignored import LOG
from tilewise.option import dashed as dashed
from tilewise.option import json_object as json_object
from tilewise.sampling_params import SamplingParams

logger = logging.getLogger("tilewise")


class CommandParser(argparse.ArgumentParser):
    """A parser that suggests the verb that was meant."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = did_you_mean(str(value), map(str, action.choices))
            if near:
                raise argparse.ArgumentError(action, f"there is no {value!r}.{near}")
        super()._check_value(action, value)


class VerbParser(CommandParser):
    """The parser of one verb. It takes flags between pictures and question too; argparse alone wants them together.

    Options of the engine are read before argparse sees the line, as `tilewise serve` reads them.
    """

    takes_all_words = False
    """True for a verb that reads its words by itself; they are in `words` of the namespace."""
    _second_pass = False
    flags: tuple[Flag, ...] = ()
    """Flags of the engine's options, and of vLLM's options that are none here."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.takes_all_words:
            return argparse.Namespace(
                **{**vars(namespace or argparse.Namespace()), **self._defaults, "words": args}
            ), []
        # parse_known_intermixed_args, below, calls this method again, and takes no parsers with verbs below them.
        if self._second_pass or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        namespace = namespace or argparse.Namespace()
        rest = self._take_engine_flags(args, namespace) if self.flags else args
        self._second_pass = True
        try:
            found, unknown = self.parse_known_intermixed_args(rest, namespace)
        finally:
            self._second_pass = False
        if unknown:
            names = (*self._option_string_actions, *FlagIndex.of(self.flags).names)
            near = did_you_mean(unknown[0].partition("=")[0], names)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near and '.'}{near}")
        return found, unknown

    def _take_engine_flags(self, words: Sequence[str], namespace: argparse.Namespace) -> list[str]:
        """Put the values of the engine's flags into the namespace, and return the other words."""
        try:
            line, rest = CommandLine.read_some(words, self.flags, tuple(self._option_string_actions))
        except BadUsage as error:
            self.error(str(error))
        namespace.engine_values = line.values
        vars(namespace).update(line.values)
        return rest

    def format_help(self) -> str:
        shown = [flag for flag in self.flags if flag.group != "compatibility"]
        own = set(self._option_string_actions)
        sections = sections_of([flag for flag in shown if flag.dashed not in own])
        return super().format_help() + (f"\noptions of the engine:\n{sections}" if sections else "")


def add_engine_flags(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Add a flag for every option of the engine, or those in `only`, and vLLM's engine flags that change nothing."""
    assert isinstance(parser, VerbParser)
    options = [flag for flag in option_flags(EngineConfig) if only is None or flag.name in only]
    known = names_of(EngineConfig)
    others = [entry for entry in PROGRAM if entry.name not in known]
    parser.flags = (*options, *map(flag_of, others))


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the engine's options that were given, and log what has no effect.

    Raises InvalidConfig for an option that is not possible.
    """
    found = translate(options.engine_values, names_of(EngineConfig), PROGRAM)
    LOG.take({f"--{name.replace('_', '-')}": why for name, why in found.ignored.reasons.items()}, "command line")
    for line in (*found.lines, *found.warnings):
        logger.warning("command line: %s", line)
    return found.options


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


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns as wide as they have to be: names are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
