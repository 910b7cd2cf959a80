"""Results as a run leaves them, for tests that only read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATE = "2026-01-02T03-04-05"


def write_result(
    folder: Path, task: str, answers: list[str], scores: list[float], tokens: list[list[int]] | None = None
) -> Path:
    """lm_eval's two files, and ours if there are tokens."""
    folder.mkdir(parents=True)
    counts = {"seconds": 2.0, "completion_tokens": 10 * len(answers), "from_store": 0}
    config: dict[str, Any] = {"tilewise": counts} if tokens else {}
    results = {"configs": {task: {"task_alias": task.upper()}}, "config": config}
    (folder / f"results_{DATE}.json").write_text(json.dumps(results))
    samples = [
        {"doc_id": row, "doc": {"q": row}, "resps": [[answer]], "metrics": ["acc"], "acc": score}
        for row, (answer, score) in enumerate(zip(answers, scores, strict=True))
    ]
    _lines(folder / f"samples_{task}_{DATE}.jsonl", samples)
    if tokens:
        said = [
            {"task": task, "row": row, "token_ids": ids, "logprob": None, "problem": None}
            for row, ids in enumerate(tokens)
        ]
        _lines(folder / f"answers_{DATE}.jsonl", said)
    return folder


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
