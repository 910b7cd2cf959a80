"""The result: one JSON of everything that was found, and tables of it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from benchmarks.gpu.goals import goals
from benchmarks.gpu.rates import device_of
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilewise.plan.floors import StageWork
from tilewise.plan.request import Device

Record = dict[str, Any]


def machine(device: str) -> dict[str, str]:
    """As far as it is known without a context on the device, which a part may break."""
    facts = {
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "cores": str(len(os.sched_getaffinity(0))),
        "torch": torch.__version__,
    }
    for package in ("triton", "transformers", "tilewise"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing"
    return facts | _gpu() if device == "cuda" else facts


def _gpu() -> dict[str, str]:
    asked = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"GPU": f"unknown ({type(error).__name__} from nvidia-smi)"}
    return dict(zip(asked, map(str.strip, said.splitlines()[0].split(",")), strict=False))


def with_floors(parts: dict[str, Record]) -> Device | None:
    """Write floor and share into each row, by what the card was measured to do; None if it was not."""
    device = device_of(parts.get("card", {}).get("rows", []))
    for part in parts.values() if device else ():
        for row in part["rows"]:
            seconds = _floor(row, device)
            if not seconds:
                continue
            match row["kind"], row.get("unit"):
                case "figure", "tokens/s":
                    row["floor"] = row["tokens"] / seconds
                    row["share"] = row["value"] / row["floor"]
                case "figure", "ms":
                    row["floor"] = 1000 * seconds
                    row["share"] = row["floor"] / row["value"]
                case "check", _:
                    row["floor_us"] = 1e6 * seconds
                    row["share"] = row["floor_us"] / row["us"] if row["us"] else None
    return device


def _floor(row: Record, device: Device | None) -> float | None:
    """Seconds."""
    works = row.get("work")
    if not works or device is None:
        return None
    stages = [StageWork(**work).seconds(device) for work in (works if isinstance(works, list) else [works])]
    return sum(seconds for seconds in stages if seconds is not None)


def show(result: Record, console: Console) -> None:
    about = "; ".join(f"{name} {fact}" for name, fact in result["machine"].items())
    console.print(Text(f"{about}\n{result['command']}\n{result['seconds']:.0f} s, seed {result['seed']}"))
    if result["tiny"]:
        console.print(Text("A rehearsal with tiny sizes: it shows that all of it runs, and no figure means anything."))
    for name, part in result["parts"].items():
        for table in (_figures(name, part), _checks(name, part)):
            if table.row_count:
                console.print(table)
        for note in _notes(name, part):
            console.print(Text(note))
    if (table := goals(result["parts"], result["tiny"])).row_count:
        console.print(table)
    console.print(_summary(result["parts"]))


def _figures(name: str, part: Record) -> Table:
    table = Table(f"{name}: {part['about']}", "median", "from", "to", "unit", "floor", "share")
    for row in part["rows"]:
        if row["kind"] == "figure":
            cells = [_number(row.get(key)) for key in ("value", "low", "high")]
            table.add_row(row["what"], *cells, row["unit"], _number(row.get("floor")), _percent(row.get("share")))
    return table


def _checks(name: str, part: Record) -> Table:
    table = Table(
        f"{name}: {part['about']}", "", "worst", "relative", "to float32", "reference's", "us", "torch", "share"
    )
    for row in part["rows"]:
        if row["kind"] == "check":
            small = [f"{row[key]:.1e}" for key in ("worst", "relative", "error", "reference_error")]
            times = [_number(row["us"]), _number(row["torch_us"]), _percent(row.get("share"))]
            table.add_row(row["what"], "ok" if row["passes"] else "WRONG", *small, *times)
    return table


def _notes(name: str, part: Record) -> Iterator[str]:
    if part["error"]:
        yield f"{name}: {part['state']}: {part['error']}"
    for row in part["rows"]:
        if row["kind"] == "note" and (row["failed"] or not row["what"].startswith(("resolved", "kernels"))):
            text = row["text"].strip().splitlines()[-1] if row["failed"] else row["text"]
            yield f"{name}: {row['what']}: {'failed: ' if row['failed'] else ''}{text}"


def _summary(parts: dict[str, Record]) -> Table:
    table = Table("part", "state", "s", "figures", "ops right", "ops wrong", "failed", "left out")
    for name, part in parts.items():
        kinds = [row["kind"] for row in part["rows"]]
        passes = [row["passes"] for row in part["rows"] if row["kind"] == "check"]
        notes = [row for row in part["rows"] if row["kind"] == "note"]
        failed = sum(row["failed"] for row in notes)
        left_out = sum(row["text"].startswith("left out") for row in notes)
        counts = (kinds.count("figure"), passes.count(True), passes.count(False), failed, left_out)
        table.add_row(name, part["state"], f"{part['seconds']:.1f}", *map(str, counts))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def as_record(part_about: str, state: str, error: str | None, seconds: float, rows: list[Record]) -> Record:
    return {"about": part_about, "state": state, "error": error, "seconds": seconds, "rows": rows}


def device_record(device: Device | None) -> Record | None:
    return None if device is None else asdict(device)
