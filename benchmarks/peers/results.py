"""What was measured so far, and the file that keeps it."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.launch import Job, Outcome, Variant

PEERS = ("tilewise", "transformers", "llama_cpp", "openvino", "vllm")
PRECISIONS = ("float32", "bfloat16", "int8")


@dataclass
class Measured:
    """All samples of a variant, by row and by the command that measured them, counted from "0"."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    prompt_tokens: dict[str, int] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the last process of each group."""

    def add(self, outcome: Outcome, job: Job, command: int) -> None:
        self.seconds[job.group] = outcome.seconds
        for row, value in outcome.samples:
            self.samples.setdefault(row, {}).setdefault(str(command), []).append(value)
        self.prompt_tokens |= outcome.prompt_tokens
        self.lacks |= outcome.lacks
        self.about |= outcome.about
        if outcome.failure and not outcome.about:
            self.lacks["everything"] = outcome.failure
        elif outcome.failure:
            self.lacks |= {row: outcome.failure for row in job.rows if row not in self.samples}

    def value(self, row: str) -> float | None:
        """The median of each command's median; of memory the highest, since it is a peak."""
        samples = self.samples.get(row, {}).values()
        if not samples:
            return None
        return max(map(max, samples)) if row == "memory" else statistics.median(map(statistics.median, samples))

    def ratio(self, row: str, other: Measured) -> float | None:
        """Its value over the other's: by what commands measured of both, hour by hour, the geometric mean."""
        ours, theirs = self.samples.get(row, {}), other.samples.get(row, {})
        common = ours.keys() & theirs.keys()
        if not common:
            return None
        if row == "memory":
            return max(map(max, ours.values())) / max(map(max, theirs.values()))
        return statistics.geometric_mean(
            statistics.median(ours[command]) / statistics.median(theirs[command]) for command in common
        )


@dataclass
class Results:
    command: str
    quick: bool
    threads: int
    checkpoint: str
    machine: dict[str, str]
    variants: dict[str, Measured] = field(default_factory=dict)

    @property
    def commands(self) -> int:
        """How many measured it."""
        return self.command.count("\n") + 1

    def like(self, other: Results) -> bool:
        """Whether samples of both may stand in one table."""
        same = ("quick", "threads", "checkpoint", "machine")
        return all(getattr(self, name) == getattr(other, name) for name in same)

    def of(self, variant: Variant) -> Measured:
        return self.variants.setdefault(variant.name, Measured())

    def measured(self, precision: str) -> dict[str, Measured]:
        """By peer, those that measured anything."""
        found = {peer: self.variants.get(f"{peer}/{precision}") for peer in PEERS}
        return {peer: measured for peer, measured in found.items() if measured and measured.samples}

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        content: dict[str, Any] = json.loads(path.read_text())
        variants = {name: Measured(**value) for name, value in content.pop("variants").items()}
        return cls(**content, variants=variants)
