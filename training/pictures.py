"""Write the pictures and questions that ship with the demo checkpoint.

The task pictures are samples of a seed that training and evaluation never use, chosen among those the checkpoint
answers rightly. The two larger drawings are for trying other models; the demo checkpoint has not learned such scenes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from blossom import cherry_blossom_picture
from sample import Level, Sample
from street import stop_sign_picture
from tasks import make_sample

SHOWN_SEED = 1_000_004
# For each shipped conversation: its file name, the task it shows, and the sample's number.
SHOWN: tuple[tuple[str, str, int], ...] = (
    ("reading_text", "word", 4),
    ("color_and_shape", "color", 8),
    ("counting", "count", 15),
    ("comparing", "compare", 5),
    ("follow_up", "position", 2),
    ("chinese_question", "chinese", 17),
    ("small_print", "small_print", 2),
)


def save_pictures(sample: Sample, name: str, folder: Path) -> list[str]:
    """Write a sample's pictures as PNG and return their file names."""
    names = [f"{name}.png"] if len(sample.pictures) == 1 else [f"{name}_{number}.png" for number in (1, 2)]
    for picture, file_name in zip(sample.pictures, names, strict=True):
        picture.save(folder / file_name, optimize=True)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the package's demo folder")
    demo = parser.parse_args().folder
    pictures = demo / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    questions = []
    for name, task, index in SHOWN:
        sample = make_sample(SHOWN_SEED, index, task, Level())
        turns = [{"question": turn.question, "answer": turn.answer} for turn in sample.turns]
        questions.append({"task": name, "pictures": save_pictures(sample, name, pictures), "turns": turns})
    text = json.dumps(questions, indent=2, ensure_ascii=False)
    (demo / "questions.json").write_text(text + "\n", encoding="utf-8")
    cherry_blossom_picture().save(pictures / "cherry_blossom.jpg", quality=40, optimize=True)
    stop_sign_picture().save(pictures / "stop_sign.jpg", quality=70, optimize=True)


if __name__ == "__main__":
    main()
