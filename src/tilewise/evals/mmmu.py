"""MMMU's report: accuracy by subject, in one JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilewise.evals.output import as_json, write_text

MMMU = "mmmu_val"


def report(results: Mapping[str, Any]) -> dict[str, Any]:
    """Right answers, all answers and their share for each subject and altogether; shares are percentages."""
    subjects = {
        str(results["configs"][task].get("task_alias") or task): counts(samples)
        for task, samples in sorted(results["samples"].items())
        if task.startswith(f"{MMMU}_")
    }
    right, total = (sum(subject[name] for subject in subjects.values()) for name in ("correct", "total"))
    tally = results["config"]["tilewise"]
    return {
        "benchmark": "MMMU_val",
        "model": results["config"]["model_args"]["pretrained"],
        "overall": _line(right, total),
        "subjects": subjects,
        "from_store": tally["from_store"],
        "failed": tally["failed"],
    }


def counts(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return _line(sum(int(sample["acc"]) for sample in samples), len(samples))


def _line(right: int, total: int) -> dict[str, Any]:
    return {"accuracy": round(100 * right / total, 2) if total else 0.0, "correct": right, "total": total}


def write_report(path: Path, results: Mapping[str, Any]) -> Path:
    return write_text(path, as_json(report(results)))
