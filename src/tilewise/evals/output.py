"""Files and tables of an evaluation that are not lm_eval's own."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from tilewise.errors import InvalidConfig
from tilewise.evals.question import ModelAnswer, Question

MMMU = "mmmu_val"


def mmmu_report(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return right answers, all answers and their share in percent, for each subject of MMMU and altogether."""
    subjects = {
        str(results["configs"][task].get("task_alias") or task): mmmu_counts(samples)
        for task, samples in sorted(results["samples"].items())
        if task.startswith(f"{MMMU}_")
    }
    right, total = (sum(subject[name] for subject in subjects.values()) for name in ("correct", "total"))
    counts = results["config"]["tilewise"]
    return {
        "benchmark": "MMMU_val",
        "model": results["config"]["model_args"]["pretrained"],
        "overall": _line(right, total),
        "subjects": subjects,
        "from_store": counts["from_store"],
        "failed": counts["failed"],
    }


def mmmu_counts(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return _line(sum(int(sample["acc"]) for sample in samples), len(samples))


def _line(right: int, total: int) -> dict[str, Any]:
    return {"accuracy": round(100 * right / total, 2) if total else 0.0, "correct": right, "total": total}


def write_report(path: Path, results: Mapping[str, Any]) -> Path:
    return write_text(path, as_json(mmmu_report(results)))


logger = logging.getLogger("tilewise")


def check_writable(folder: Path | None) -> None:
    """Make the folder and write into it, before anything is computed. Raises InvalidConfig."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidConfig(f"Nothing can be written to {folder} ({error.strerror}): name another folder.") from None


def write_text(path: Path, text: str) -> Path:
    """Write to `path`, or to a temporary file if that fails, so that no result is lost; return where the text is."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        with tempfile.NamedTemporaryFile("w", suffix=path.name, delete=False, encoding="utf-8") as file:
            file.write(text)
        logger.warning("%s cannot be written (%s); its content is in %s", path, error.strerror, file.name)
        return Path(file.name)
    return path


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def write_run(folder: Path, tracker: Any, results: dict[str, Any], samples: dict[str, Any] | None) -> None:
    """Write lm_eval's own files by its tracker, and the results once more if it failed, which it only logs."""
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in (samples or {}).items():
        tracker.save_results_samples(task_name=task, samples=rows)
    file = _beside(folder, tracker, "results", "json")
    if not file.exists():
        write_text(file, as_json(results))


def write_answers(folder: Path, tracker: Any, answers: Sequence[tuple[Question, ModelAnswer]]) -> Path:
    """Write `answers_DATE.jsonl` beside lm_eval's files: a line for each question, with tokens and seconds."""
    path = _beside(folder, tracker, "answers", "jsonl")
    rows = ({"task": question.task, "row": question.row, **dataclasses.asdict(answer)} for question, answer in answers)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write_text(path, "".join(lines))


def _beside(folder: Path, tracker: Any, kind: str, ending: str) -> Path:
    """Return the path of a file of the run, in the folder and with the date that lm_eval gives its own."""
    name, date = tracker.general_config_tracker.model_name_sanitized, getattr(tracker, "date_id", "undated")
    return folder / str(name) / f"{kind}_{date}.{ending}"


def score_table(results: Mapping[str, Any]) -> Table:
    """Return a table with a row for each task and metric, groups first."""
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
    """Yield name, value and standard error of metrics; lm_eval's keys are `metric,filter`, `metric_stderr,filter`."""
    for key, value in row.items():
        name, comma, kind = key.partition(",")
        if comma and not name.endswith("_stderr"):
            yield name if kind == "none" else f"{name} ({kind})", value, row.get(f"{name}_stderr,{kind}")


def count_sentences(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences about the questions of a run; what did not happen is not mentioned."""
    yield (
        f"{counts['questions']} questions, {counts['from_store']} answers from the store; "
        f"{counts['completion_tokens']} tokens in {counts['seconds']:.1f} s "
        f"({counts['completion_tokens_per_second']:.1f} tokens/s)"
    )
    for name, words in (
        ("pictures_left_out", "pictures beyond max_images were left out"),
        ("prompts_cut", "prompts lost their beginning: the context is too short"),
        ("cut_off", "answers ended at their limit of tokens"),
    ):
        if counts[name]:
            yield f"{counts[name]} {words}"
    failed = counts["failed"]
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
