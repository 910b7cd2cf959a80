"""EvalClient: asks an engine questions, and takes answers that were given before from the store.

It owns the counts of a run. A question that cannot be asked fails alone; the others are answered.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import tilewise
from tilewise.config import EngineConfig
from tilewise.console import progress_bar
from tilewise.entrypoints.llm import LLM
from tilewise.errors import InvalidConfig, InvalidRequest
from tilewise.evals.question import ModelAnswer, Question
from tilewise.evals.results import QuestionCounts
from tilewise.inputs.prepare import Preparer
from tilewise.types import Request
from tilewise.weights.checkpoint import Checkpoint

ANSWER_OPTIONS = (
    "device",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "load_format",
    "batch_invariant",
    "check_numerics",
    "mm_processor_kwargs",
    "tile_budget",
    "flash_router",
    "seed",
    "tokenizer",
    "tokenizer_revision",
    "exif_orientation",
    "interleave_mm_strings",
    "disable_additional_properties",
    "disable_any_whitespace",
    "max_image_pixels",
    "max_image_aspect_ratio",
)
"""Options of the engine that can change an answer. The others change when it comes, or whether it comes at all."""
_SMALL = 1 << 20


def identity(config: EngineConfig, max_model_len: int) -> str:
    """Return a digest of all that decides answers. Large files count by size and time, small ones by content."""
    folder = Checkpoint.of(config).folder
    facts = {
        "tilewise": tilewise.__version__,
        "files": _files(folder.path),
        "adapter": None if folder.adapter is None else _files(folder.adapter.folder),
        "options": {name: getattr(config, name) for name in ANSWER_OPTIONS},
        "max_model_len": max_model_len,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> dict[str, str]:
    return {path.name: _file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _file(path: Path) -> str:
    facts = path.stat()
    if facts.st_size > _SMALL:
        return f"{facts.st_size} bytes, {facts.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


_TABLE = """
create table if not exists answers (
    model text not null, question text not null, answer text not null, primary key (model, question)
) without rowid
"""


class AnswerStore:
    """Keeps one model's answers beyond the process, in `answers.sqlite` in a folder, which is made if need be.

    A row is written as soon as an answer is whole, so a run that was killed goes on where it was, and two runs may
    share a file. An answer belongs to a model's identity and to a question's key, and to nothing else.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.path = folder / "answers.sqlite"
        self._model = model
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            self._database.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise InvalidConfig(
                f"Answers cannot be kept in {self.path} ({error}): name a folder that can be written to, or remove the "
                "file if it is none of SQLite's."
            ) from None

    def find(self, question: str) -> ModelAnswer | None:
        query = "select answer from answers where model = ? and question = ?"
        row = self._do(query, (self._model, question)).fetchone()
        return None if row is None else ModelAnswer.of_json(json.loads(row[0]))

    def keep(self, question: str, answer: ModelAnswer) -> None:
        """Write an answer, in place of one that is there already; it is on file when this returns."""
        self._do("insert or replace into answers values (?, ?, ?)", (self._model, question, answer.to_json()))

    def close(self) -> None:
        self._database.close()

    def _do(self, statement: str, values: tuple[str, ...]) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise InvalidConfig(f"{self.path} cannot be used any more ({error}): what it holds stays there.") from None


KeyedQuestion = tuple[Question, str]
"""A question and the key of its answer."""
UNREADABLE = "tilewise_unreadable"
"""Key in a PIL picture's `info` whose value says why the picture of the data set could not be read."""


@dataclass
class EvalClient:
    """Asks an engine in batches, so that only the pictures of one batch are held cut into tiles at a time."""

    llm: LLM
    batch_size: int
    max_images: int
    store: AnswerStore | None = None
    counts: QuestionCounts = field(default_factory=QuestionCounts)
    answers: list[tuple[Question, ModelAnswer]] = field(default_factory=list)
    """All answers so far, each with its question, in the order of the questions."""

    def ask(self, questions: Iterable[Question], on_answer: Callable[[int, ModelAnswer], None]) -> list[ModelAnswer]:
        """Return the answers in the order of the questions; `on_answer` gets each with its index once it is whole."""
        asked = list(_with_keys(map(self._limited, questions)))
        found: dict[int, ModelAnswer] = {}
        with progress_bar("Answering", len(asked)) as advance:
            for place, answer in self._each(asked):
                found[place] = answer
                on_answer(place, answer)
                advance(1)
        answers = [found[place] for place in range(len(asked))]
        self.counts.cut_off += sum(answer.finish_reason == "length" for answer in answers)
        self.answers += [(question, answer) for (question, _), answer in zip(asked, answers, strict=True)]
        return answers

    def _each(self, asked: list[KeyedQuestion]) -> Iterator[tuple[int, ModelAnswer]]:
        self.counts.questions += len(asked)
        unknown: list[int] = []
        for place, (_, key) in enumerate(asked):
            answer = self.store.find(key) if self.store else None
            if answer is None:
                unknown.append(place)
            else:
                self.counts.from_store += 1
                yield place, answer
        for first in range(0, len(unknown), self.batch_size):
            yield from self._batch(unknown[first : first + self.batch_size], asked)

    def _batch(self, places: list[int], asked: list[KeyedQuestion]) -> Iterator[tuple[int, ModelAnswer]]:
        started = time.monotonic()
        requests: dict[int, Request] = {}
        for place in places:
            question = asked[place][0]
            try:
                requests[place] = _request(question, self.llm.inputs)
            except InvalidRequest as error:
                self.counts.failed.append(f"{question.where}: {error}")
                yield place, ModelAnswer(problem=str(error))
        order = list(requests)
        for number, output in self.llm.answer_each(list(requests.values())):
            question, key = asked[order[number]]
            answer = ModelAnswer.of(output, question.scored)
            if answer.problem is not None:
                self.counts.failed.append(f"{question.where}: {answer.problem}")
            elif self.store:
                self.store.keep(key, answer)
            self.counts.count_computed(answer)
            yield order[number], answer
        self.counts.seconds += time.monotonic() - started

    def _limited(self, question: Question) -> Question:
        kept, left_out = question.with_at_most(self.max_images)
        self.counts.pictures_left_out += left_out
        return kept


def _request(question: Question, inputs: Preparer) -> Request:
    for picture in question.pictures:
        if UNREADABLE in picture.info:
            raise InvalidRequest(str(picture.info[UNREADABLE]))
    return question.request(inputs)


def _with_keys(questions: Iterable[Question]) -> Iterator[KeyedQuestion]:
    """Yield each question with the key of its answer.

    A question that is asked again gets another seed and another key, since answers that are drawn are meant to differ.
    """
    seen: Counter[str] = Counter()
    for question in questions:
        key, seed = question.key(), question.sampling.seed
        repeat = seen[key]
        seen[key] += 1
        if repeat and seed is not None:
            question = replace(question, sampling=replace(question.sampling, seed=seed + repeat))
        yield question, f"{key}/{repeat}"
