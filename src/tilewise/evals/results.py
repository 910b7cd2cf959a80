"""Results: files that a run leaves, lm_eval's and ours beside them, and what a comparison reads of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tilewise.errors import InvalidConfig
from tilewise.evals.question import ModelAnswer, Question
from tilewise.host import require_extra
from tilewise.types import TokenIds

logger = logging.getLogger("tilewise")


@dataclass
class QuestionCounts:
    """Counts of the questions of a run and of the answers to them."""

    questions: int = 0
    from_store: int = 0
    failed: list[str] = field(default_factory=list)
    """Questions that could not be asked, each with the reason."""
    pictures_left_out: int = 0
    prompts_cut: int = 0
    """Texts that lost their beginning, because the context is too short."""
    cut_off: int = 0
    """Answers that ended at their limit of tokens."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """Seconds in which the engine was at work; stored answers take none."""

    @property
    def rate(self) -> float:
        """Tokens of answers a second."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "completion_tokens_per_second": self.rate}

    @classmethod
    def from_json(cls, counts: Mapping[str, Any]) -> QuestionCounts:
        """Read what `as_json` wrote, which lm_eval's results have as `config.tilewise`."""
        return cls(**{name: value for name, value in counts.items() if name != "completion_tokens_per_second"})

    def count_computed(self, answer: ModelAnswer) -> None:
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += len(answer.token_ids)

    def sentences(self) -> Iterator[str]:
        """Yield sentences about the questions of a run; what did not happen is not mentioned."""
        yield (
            f"{self.questions} questions, {self.from_store} answers from the store; "
            f"{self.completion_tokens} tokens in {self.seconds:.1f} s ({self.rate:.1f} tokens/s)"
        )
        for count, words in (
            (self.pictures_left_out, "pictures beyond max_images were left out"),
            (self.prompts_cut, "prompts lost their beginning: the context is too short"),
            (self.cut_off, "answers ended at their limit of tokens"),
        ):
            if count:
                yield f"{count} {words}"
        if self.failed:
            yield f"{len(self.failed)} questions could not be asked, and count as wrong:"
        yield from (f"  {line}" for line in self.failed[:10])
        if len(self.failed) > 10:
            yield f"  and {len(self.failed) - 10} more, in the results"


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """A line of `answers_DATE.jsonl`: an answer to a row of a task."""

    task: str
    row: int | None
    answer: ModelAnswer

    def to_json(self) -> str:
        return json.dumps({"task": self.task, "row": self.row, **dataclasses.asdict(self.answer)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> KeptAnswer:
        values = json.loads(text)
        return cls(values.pop("task"), values.pop("row"), ModelAnswer.of_json(values))


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


def check_outputs(*files: Path | None, plot: Path | None = None) -> None:
    """Raise InvalidConfig if one of these files could not be written, or the picture not be drawn."""
    for file in (*files, plot):
        check_writable(file and file.parent)
    if plot:
        require_extra("matplotlib", "plot", "A picture")


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


def print_report(table: Table, lines: Iterable[str]) -> None:
    console = Console(width=120)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


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
    lines = (KeptAnswer(question.task, question.row, answer).to_json() + "\n" for question, answer in answers)
    return write_text(_beside(folder, tracker, "answers", "jsonl"), "".join(lines))


def _beside(folder: Path, tracker: Any, kind: str, ending: str) -> Path:
    """Return the path of a file of the run, in the folder and with the date that lm_eval gives its own."""
    name, date = tracker.general_config_tracker.model_name_sanitized, getattr(tracker, "date_id", "undated")
    return folder / str(name) / f"{kind}_{date}.{ending}"


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """One question of a task, as answered."""

    question: str
    """The row of the data set as JSON, its pictures as digests. lm_eval's own `doc_hash` would not do: of a row with
    pictures it differs from run to run, as it includes where they are in memory."""
    answer: str
    scores: dict[str, float]
    token_ids: TokenIds | None
    """Tokens of a generated answer; None in results of other engines."""


@dataclass(frozen=True)
class EvalResult:
    name: str
    rows: dict[tuple[str, int], AnsweredQuestion]
    """Answered questions by task and number of the row."""
    aliases: dict[str, str]
    counts: QuestionCounts | None
    """Counts of the run; None in results of other engines."""


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
            for sample in map(json.loads, _lines(file.with_name(f"samples_{task}_{date}.jsonl")))
        }
        aliases = {task: str(config.get("task_alias") or task) for task, config in results["configs"].items()}
        counts = results["config"].get("tilewise")
        return EvalResult(name or str(path), rows, aliases, counts and QuestionCounts.from_json(counts))
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


def _lines(file: Path) -> list[str]:
    """Return the lines of a file. Its JSON may hold what str.splitlines takes for a line's end (U+2028, U+0085)."""
    with file.open(encoding="utf-8") as lines:
        return list(lines)


def _tokens(file: Path) -> dict[tuple[str, int | None], TokenIds]:
    """Return tokens of generated answers by task and row; a row that is asked several times counts with the first."""
    found: dict[tuple[str, int | None], TokenIds] = {}
    for line in _lines(file) if file.exists() else []:
        kept = KeptAnswer.from_json(line)
        if kept.answer.logprob is None or kept.answer.problem:
            found.setdefault((kept.task, kept.row), kept.answer.token_ids)
    return found


def _row(sample: dict[str, Any], tokens: TokenIds | None) -> AnsweredQuestion:
    scores = {name: float(sample[name]) for name in sample["metrics"] if isinstance(sample[name], (int, float))}
    question, answer = (json.dumps(sample[name], ensure_ascii=False, sort_keys=True) for name in ("doc", "resps"))
    return AnsweredQuestion(question, answer, scores, tokens)
