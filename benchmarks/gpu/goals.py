"""Goals for an H100 or H200, beside what was reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

Parts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Goal:
    what: str
    wanted: float
    unit: str
    found: Callable[[Parts], float]
    """Raises KeyError where it was not measured."""
    most: bool = False
    """The number that is wanted is the largest that will do, not the smallest."""

    def reached(self, value: float) -> bool:
        return value <= self.wanted if self.most else value >= self.wanted


def figure(parts: Parts, part: str, what: str, key: str = "value") -> float:
    """Raises KeyError where there is no such number."""
    for row in parts.get(part, {}).get("rows", []):
        if row["kind"] == "figure" and row["what"] == what and row.get(key) is not None:
            return float(row[key])
    raise KeyError(part, what)


def _share(part: str, what: str) -> Callable[[Parts], float]:
    return lambda parts: 100 * figure(parts, part, what, "share")


def _value(part: str, what: str) -> Callable[[Parts], float]:
    return lambda parts: figure(parts, part, what)


def _prefill(parts: Parts) -> float:
    """So long a prompt is bound by the matrix rate."""
    names = (row["what"] for row in parts.get("8B", {}).get("rows", []))
    found = next((name for name in names if name.startswith("first token, text") and ":" not in name), "first token")
    return 100 * figure(parts, "8B", found, "share")


def _beside(parts: Parts) -> float:
    name = "between tokens of 8 streams, {}, p50"
    alone, beside = (figure(parts, "8B", name.format(how)) for how in ("alone", "beside pictures of 13 tiles"))
    return beside / alone


def _faster(parts: Parts) -> float:
    ours, theirs = (figure(parts, part, "decode, 1 streams") for part in ("8B", "transformers-8B"))
    return ours / theirs


GOALS = (
    Goal("8B, decode of one stream, of its floor", 80, "%", _share("8B", "decode, 1 streams")),
    Goal("8B, decode of 64 streams, of its floor", 70, "%", _share("8B", "decode, 64 streams")),
    Goal("8B, prompt of 3,400 tokens, of its floor", 55, "%", _prefill),
    Goal("13 tiles through InternViT-300M", 30, "ms", _value("8B", "tower, 13 tiles"), most=True),
    Goal("8B, idle between steps of 64 streams", 3, "%", _value("8B", "idle between steps, 64 streams"), most=True),
    Goal("8B, token of 8 streams beside pictures over alone", 2, "x", _beside, most=True),
    Goal("1B, start to first answer", 6, "s", _value("1B-again", "start to first answer"), most=True),
    Goal("8B, decode of one stream over transformers", 3, "x", _faster),
)


def goals(parts: Parts, tiny: bool) -> Table:
    """Those that were measured. Of tiny sizes, nothing is judged."""
    table = Table("goal (H100, H200)", "wanted", "found", "")
    for goal in GOALS:
        try:
            value = goal.found(parts)
        except KeyError:
            continue
        sign = "at most" if goal.most else "at least"
        how = "reached" if goal.reached(value) else "missed"
        how = "rehearsed" if tiny else how
        table.add_row(goal.what, f"{sign} {goal.wanted:g} {goal.unit}", f"{value:.3g} {goal.unit}", how)
    return table
