"""EvalResult: scores and answers of a finished run, read from lm_eval's files and from ours beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """One question of a task, as answered."""

    question: str
    """The row of the data set as JSON, its pictures as digests. lm_eval's own `doc_hash` would not do: of a row with
    pictures it differs from run to run, as it includes where they are in memory."""
    answer: str
    scores: dict[str, float]
    token_ids: tuple[int, ...] | None
    """Tokens of a generated answer; None in results of other engines."""


@dataclass(frozen=True, slots=True)
class Speed:
    seconds: float
    tokens: int
    from_store: int

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class EvalResult:
    name: str
    rows: dict[tuple[str, int], AnsweredQuestion]
    """Answered questions by task and number of the row."""
    aliases: dict[str, str]
    speed: Speed | None
    """Speed of the run; None in results of other engines."""


def read_result(path: Path, name: str = "") -> EvalResult:
    """Read the newest run below a folder, or the run of one `results_*.json`. Raises InvalidConfig."""
    file = _results_file(path)
    date = file.stem.removeprefix("results_")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        tokens = _tokens(file.with_name(f"answers_{date}.jsonl"))
        rows = {
            (task, sample["doc_id"]): _row(sample, tokens.get((task, sample["doc_id"])))
            for task in results["configs"]
            for sample in _lines(file.with_name(f"samples_{task}_{date}.jsonl"))
        }
        aliases = {task: str(config.get("task_alias") or task) for task, config in results["configs"].items()}
        return EvalResult(name or str(path), rows, aliases, _speed(results["config"].get("tilewise")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidConfig(
            f"{file} and the samples beside it cannot be read ({type(error).__name__}: {error}): compare needs a run "
            "with --log-samples."
        ) from None


def _results_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.rglob("results_*.json"), key=lambda file: file.stem)
    if not found:
        raise InvalidConfig(f"{path} has no results_*.json: name the --output-path of a run.")
    return found[-1]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _tokens(file: Path) -> dict[tuple[str, int], tuple[int, ...]]:
    """Return tokens of generated answers by task and row; a row that is asked several times counts with the first."""
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    for line in _lines(file) if file.exists() else []:
        if line["logprob"] is None or line["problem"]:
            found.setdefault((line["task"], line["row"]), tuple(line["token_ids"]))
    return found


def _row(sample: dict[str, Any], tokens: tuple[int, ...] | None) -> AnsweredQuestion:
    scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], (int, float))}
    question, answer = (json.dumps(sample[name], ensure_ascii=False, sort_keys=True) for name in ("doc", "resps"))
    return AnsweredQuestion(question, answer, scores, tokens)


def _speed(counts: dict[str, Any] | None) -> Speed | None:
    return counts and Speed(counts["seconds"], counts["completion_tokens"], counts["from_store"])  # type: ignore[return-value]
