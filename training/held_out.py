"""Write the held-out questions that ship with the package: `src/tilewise/evals/tasks/held_out.parquet`.

The samples that score.py begins with, the first turn of each alone. Needs pyarrow, which `tilewise[eval]` brings, and
the DejaVu fonts.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image
from pyarrow import parquet

from evaluate import HELD_OUT_SEED
from sample import Level, Sample
from tasks import MEASURED_TASKS, make_sample

SCHEMA = pyarrow.schema(
    {
        "task": pyarrow.string(),
        "question": pyarrow.string(),
        "answer": pyarrow.string(),
        "images": pyarrow.list_(pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})),
    }
)


def row(sample: Sample) -> dict[str, Any]:
    """A question with a marker for each of its pictures, which are numbered if there are several."""
    turn, count = sample.turns[0], len(sample.pictures)
    markers = ["<image>\n"] if count == 1 else [f"Image-{number}: <image>\n" for number in range(1, count + 1)]
    pictures = [{"bytes": png(picture), "path": None} for picture in sample.pictures]
    return {"task": turn.task, "question": "".join(markers) + turn.question, "answer": turn.answer, "images": pictures}


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--per-task", type=int, default=24)
    arguments = parser.parse_args()
    samples = [
        make_sample(HELD_OUT_SEED, index, task, Level())
        for task in MEASURED_TASKS
        for index in range(arguments.per_task)
    ]
    table = pyarrow.Table.from_pylist(list(map(row, samples)), schema=SCHEMA)
    parquet.write_table(table, arguments.file, compression="none", use_dictionary=False)
    pictures = sum(len(sample.pictures) for sample in samples)
    print(
        f"{arguments.file}: {len(samples)} questions about {pictures} pictures, {arguments.file.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
