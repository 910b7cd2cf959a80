"""Files of an evaluation that are not lm_eval's own, and whether they can be written at all."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidConfig
from tilewise.evals.answer import Answer
from tilewise.evals.question import Question

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
    """To `path`, or to a temporary file when that fails after all, so that no result is lost; returns where it is."""
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
    """lm_eval's own files, by its tracker, which only logs what goes wrong."""
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in (samples or {}).items():
        tracker.save_results_samples(task_name=task, samples=rows)
    file = _beside(folder, tracker, "results", "json")
    if not file.exists():
        write_text(file, as_json(results))


def write_answers(folder: Path, tracker: Any, answers: Sequence[tuple[Question, Answer]]) -> Path:
    """`answers_DATE.jsonl` beside lm_eval's files: a line for each question, with tokens and seconds."""
    path = _beside(folder, tracker, "answers", "jsonl")
    rows = ({"task": question.task, "row": question.row, **dataclasses.asdict(answer)} for question, answer in answers)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write_text(path, "".join(lines))


def _beside(folder: Path, tracker: Any, kind: str, ending: str) -> Path:
    """A file of a run in the folder, and with the date, that lm_eval gives its own."""
    name, date = tracker.general_config_tracker.model_name_sanitized, getattr(tracker, "date_id", "undated")
    return folder / str(name) / f"{kind}_{date}.{ending}"
