"""Files of an evaluation that are not lm_eval's own, and whether they can be written at all."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidConfig
from tilewise.evals.answer import Answer
from tilewise.evals.question import Question


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
    except OSError:
        with tempfile.NamedTemporaryFile("w", suffix=path.name, delete=False, encoding="utf-8") as file:
            file.write(text)
            return Path(file.name)
    return path


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def write_answers(folder: Path, tracker: Any, answers: Sequence[tuple[Question, Answer]]) -> Path:
    """`answers_DATE.jsonl` beside lm_eval's files: a line for each question, with tokens and seconds."""
    name = tracker.general_config_tracker.model_name_sanitized
    path = folder / str(name) / f"answers_{tracker.date_id}.jsonl"
    rows = ({"task": question.task, "row": question.row, **dataclasses.asdict(answer)} for question, answer in answers)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write_text(path, "".join(lines))
