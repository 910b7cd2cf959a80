"""Tasks and data sets in a folder, in lm_eval's form."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml
from PIL import Image

from tilewise.assets import ImageAsset


def write_texts(folder: Path) -> None:
    """Three tasks over one JSON file, one for each way of asking."""
    folder.mkdir(parents=True)
    rows = [
        {"question": f"What color is the {thing}?", "answer": place % 2}
        for place, thing in enumerate(("sky", "sea", "rose"))
    ]
    file = folder / "colors.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
    choice = {
        "task": "colors_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": ["red", "blue"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    generate = {
        "task": "colors_generate",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    rolling = {
        "task": "colors_rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "question",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    for task in (choice, generate, rolling):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**shared, **task}))


def write_pictures(folder: Path, rows: int, each: int = 1, damaged: Mapping[int, bytes | None] | None = None) -> None:
    """A task over a Parquet file with pictures, some of which may be no pictures, and two tasks that are wrong.

    None in `damaged` is the picture cut short.
    """
    from datasets import Dataset, Features, List, Value
    from datasets import Image as Picture

    folder.mkdir(parents=True)
    whole = _png(ImageAsset("reading_text").pil_image)
    bad = {row: whole[:200] if content is None else content for row, content in (damaged or {}).items()}
    table = [
        {
            "question": "<image>\n" * each + "What is the word?" + "?" * row,
            "answer": "cat",
            "images": [{"bytes": bad.get(row, whole), "path": None}] * each,
        }
        for row in range(rows)
    ]
    columns = Features({"question": Value("string"), "answer": Value("string"), "images": List(Picture())})
    Dataset.from_list(table, features=columns).to_parquet(folder / "rows.parquet")
    task: dict[str, Any] = {
        "task": "pictures",
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.parquet")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question | replace('????????', '')}}",
        "doc_to_image": "images",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    lost = {"data_files": {"test": str(folder / "lost.parquet")}}
    for changes in ({}, {"task": "nocolumn", "doc_to_text": "{{prompt}}"}, {"task": "nofile", "dataset_kwargs": lost}):
        named = {**task, **changes}
        (folder / f"{named['task']}.yaml").write_text(yaml.safe_dump(named))


def write_mmmu(folder: Path, subjects: Mapping[str, int]) -> None:
    """A copy of MMMU as it is cloned, with so many rows a subject; the second image of a row is never named."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture

    texts = ("id", "question", "options", "explanation", "topic_difficulty", "question_type", "answer", "subfield")
    images = [f"image_{number}" for number in range(1, 8)]
    columns = Features({**{name: Value("string") for name in texts}, **{name: Picture() for name in images}})
    home = folder / "MMMU" / "MMMU"
    for subject, count in subjects.items():
        rows = [
            {
                **dict.fromkeys((*texts, *images)),
                "id": f"validation_{subject}_{row}",
                "question": "<image 1> What is the word in <image 1>?",
                "options": "['cat', 'dog', 'bird', 'cow']",
                "question_type": "multiple-choice" if row else "open",
                "answer": "A" if row else "cat",
                "image_1": {"bytes": _png(ImageAsset("reading_text").pil_image), "path": None},
            }
            for row in range(count)
        ]
        (home / subject).mkdir(parents=True)
        Dataset.from_list(rows, features=columns).to_parquet(home / subject / "validation-00000-of-00001.parquet")
    configs = "".join(
        dedent(f"""\
            - config_name: {subject}
              data_files:
              - split: validation
                path: {subject}/validation-*
            """)
        for subject in subjects
    )
    (home / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
