"""`tilewise eval compare`: two results, or two engines that are run first."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.evals.compare.comparison import Comparison
from tilewise.evals.compare.result import Result, read_result
from tilewise.evals.compare.table import sentences, table
from tilewise.evals.output import as_json, check_writable, write_text
from tilewise.extras import need

if TYPE_CHECKING:
    from tilewise.evals.harness.run import EvalOptions


def compare_results(first: str, second: str, json_file: Path | None, plot: Path | None) -> int:
    check_outputs(json_file, plot)
    for path in (first, second):
        if not Path(path).exists():
            raise InvalidConfig(f"{path}: no such result. To run two engines first, name --tasks.")
    return show(read_result(Path(first)), read_result(Path(second)), json_file, plot)


def compare_engines(first: str, second: str, options: EvalOptions, json_file: Path | None, plot: Path | None) -> int:
    """One after the other, so that each has the machine to itself."""
    from tilewise.evals.harness.run import evaluate

    check_outputs(json_file, plot)
    engines = {"a": read_engine(first), "b": read_engine(second)}
    for engine in engines.values():
        EngineConfig.of(**engine)
    with tempfile.TemporaryDirectory() as spare:
        folder = options.output_path or Path(spare)
        for name, engine in engines.items():
            evaluate(replace(options, engine=engine, output_path=folder / name))
        results = read_result(folder / "a", first), read_result(folder / "b", second)
    return show(*results, json_file, plot)


def check_outputs(json_file: Path | None, plot: Path | None) -> None:
    for file in (json_file, plot):
        check_writable(file.parent if file else None)
    if plot:
        need("matplotlib", "plot", "A picture")


def read_engine(text: str) -> dict[str, Any]:
    """`MODEL` or `MODEL,option=value,option=value`; values are read as JSON where they are JSON."""
    model, *pairs = text.split(",")
    options: dict[str, Any] = {"model": model}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InvalidConfig(f"{text!r}: {pair!r} is no option=value; an engine is MODEL,option=value,...")
        try:
            options[name.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.strip().replace("-", "_")] = value
    return options


def show(first: Result, second: Result, json_file: Path | None, plot: Path | None) -> int:
    comparison, console = Comparison.of(first, second), Console(width=120)
    console.print(table(comparison))
    for line in sentences(comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if json_file:
        write_text(json_file, as_json(comparison.as_dict()))
    if plot:
        from tilewise.evals.compare.figure import draw

        draw(comparison, plot)
    return 0
