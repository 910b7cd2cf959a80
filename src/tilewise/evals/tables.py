"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table


def scores(results: Mapping[str, Any]) -> Table:
    """A row for each task and metric, groups first."""
    table = Table()
    for title in ("task", "questions", "metric", "value", "± standard error"):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right", overflow="fold")
    groups = results.get("groups") or {}
    for task, row in sorted(results["results"].items(), key=lambda item: item[0] not in groups):
        name = ("" if task in groups or not groups else "- ") + str(row.get("alias", task)).lstrip(" -")
        for metric, value, error in metrics(row):
            table.add_row(name, str(_rows(results, task)), metric, _number(value), _number(error))
    return table


def metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and standard error of each metric; lm_eval writes `metric,filter` and `metric_stderr,filter`."""
    for key, value in row.items():
        name, comma, kind = key.partition(",")
        if comma and not name.endswith("_stderr"):
            yield name if kind == "none" else f"{name} ({kind})", value, row.get(f"{name}_stderr,{kind}")


def tally_lines(tally: Mapping[str, Any]) -> Iterator[str]:
    """What came of the questions, in sentences; what did not happen is not mentioned."""
    yield (
        f"{tally['questions']} questions, {tally['from_store']} answers from the store; "
        f"{tally['completion_tokens']} tokens in {tally['seconds']:.1f} s "
        f"({tally['completion_tokens_per_second']:.1f} tokens/s)"
    )
    for name, words in (
        ("pictures_left_out", "pictures beyond max_images were left out"),
        ("prompts_cut", "prompts lost their beginning: the context is too short"),
        ("cut_off", "answers ended at their limit of tokens"),
    ):
        if tally[name]:
            yield f"{tally[name]} {words}"
    failed = tally["failed"]
    if failed:
        yield f"{len(failed)} questions could not be asked, and count as wrong:"
    yield from (f"  {line}" for line in failed[:10])
    if len(failed) > 10:
        yield f"  and {len(failed) - 10} more, in the results"


def _rows(results: Mapping[str, Any], task: str) -> Any:
    counted = results.get("n-samples", {}).get(task)
    if counted:
        return counted["effective"]
    members = results.get("group_subtasks", {}).get(task, [])
    return sum(_rows(results, member) or 0 for member in members) or ""


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value if value is not None else "")
