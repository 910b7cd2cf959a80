"""AnswerStore: answers that outlive the process that computed them, by model, options and question.

A row of an SQLite file is written as soon as an answer is whole, so a run that was killed goes on where it was, and two
runs may share a file. An answer belongs to a model's identity and to a question's key, and to nothing else.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

import tilewise
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.evals.question import ModelAnswer
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
    """A store of one model's answers, which owns the connection to `answers.sqlite` in a folder, made if need be."""

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
