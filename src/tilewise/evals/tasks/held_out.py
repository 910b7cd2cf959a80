"""The rows of a demo task: pictures that the demo model was never trained on, questions and right answers.

`training/held_out.py` made the file. lm_eval calls `load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value
from pyarrow import parquet

_FILE = Path(__file__).parent / "held_out.parquet"
_COLUMNS = Features(
    {"task": Value("string"), "question": Value("string"), "answer": Value("string"), "images": List(Image())}
)


def load(task: str, **_: Any) -> DatasetDict:
    """Return the rows of a task as the split `test`; the other keywords, lm_eval's metadata, are ignored."""
    rows = parquet.read_table(_FILE, filters=[("task", "=", task)]).to_pylist()
    return DatasetDict({"test": Dataset.from_list(rows, features=_COLUMNS)})
