"""What parts find: figures, checks of ops, and notes; each a line of JSON as soon as it is there."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilewise.plan.floors import StageWork


@dataclass(frozen=True)
class Figure:
    """A median, and the work that it was for."""

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    runs: int = 1
    work: tuple[StageWork, ...] = ()
    """Of stages, one behind the other; their floor is compared with `value`."""
    tokens: int = 0
    """That come out of the work, where the unit is tokens/s."""
    kind: str = "figure"


@dataclass(frozen=True)
class Check:
    """An op of the platform, beside the reference op and beside torch's way on the same device."""

    what: str
    passes: bool
    worst: float
    """Largest absolute difference from the reference; of token ids, how many differ."""
    relative: float
    """Largest difference from the reference as a share of its number, or of a hundredth of its largest number."""
    error: float
    """Largest absolute difference from the reference in float32."""
    reference_error: float
    """The same of the reference."""
    us: float
    torch_us: float | None
    work: StageWork
    kind: str = "check"


@dataclass(frozen=True)
class Note:
    """What was not measured, and why; or something to know of what was."""

    what: str
    text: str
    failed: bool = False
    kind: str = "note"


Row = Figure | Check | Note


def median(what: str, values: Sequence[float], unit: str, work: Sequence[StageWork] = (), tokens: int = 0) -> Figure:
    """The figure of several runs."""
    return Figure(
        what, statistics.median(values), unit, min(values), max(values), len(values), tuple(work), tokens=tokens
    )


def milliseconds(what: str, seconds: Sequence[float], work: Sequence[StageWork] = ()) -> Figure:
    return median(what, [1000 * value for value in seconds], "ms", work)


@dataclass(frozen=True)
class Notebook:
    """A file of rows, one a line, which outlives the process that writes it."""

    path: Path

    def write(self, row: Row) -> None:
        self._append(asdict(row))

    def mark(self, kind: str, item: str) -> None:
        """An item begins ("begun") or ends ("ended")."""
        self._append({"kind": kind, "what": item})

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]  # the last one may have been cut off

    def rows(self) -> list[dict[str, Any]]:
        return [record for record in self.records() if record["kind"] in ("figure", "check", "note")]

    def items(self, kind: str) -> list[str]:
        return [record["what"] for record in self.records() if record["kind"] == kind]
