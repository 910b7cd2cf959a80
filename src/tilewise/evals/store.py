"""AnswerStore: answers that outlive the process that computed them.

One row of an SQLite file is written as soon as an answer is whole, so what was killed goes on where it was, and two
runs may share a file. An answer belongs to a model's identity and to a question's key, and to nothing else.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tilewise.errors import InvalidConfig
from tilewise.evals.answer import Answer

_TABLE = """
create table if not exists answers (
    model text not null, question text not null, answer text not null, primary key (model, question)
) without rowid
"""


class AnswerStore:
    """Owns the connection to `answers.sqlite` in a folder, which is made if need be."""

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

    def find(self, question: str) -> Answer | None:
        query = "select answer from answers where model = ? and question = ?"
        row = self._do(query, (self._model, question)).fetchone()
        return None if row is None else Answer.from_json(row[0])

    def keep(self, question: str, answer: Answer) -> None:
        """Written when this returns; an answer that is there already is replaced."""
        self._do("insert or replace into answers values (?, ?, ?)", (self._model, question, answer.to_json()))

    def close(self) -> None:
        self._database.close()

    def _do(self, statement: str, values: tuple[str, ...]) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise InvalidConfig(f"{self.path} cannot be used any more ({error}): what it holds stays there.") from None
