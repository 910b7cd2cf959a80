"""`tilewise demo`: ask the shipped demo model about the shipped pictures, and show what it says."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tilewise.cli.options import add_engine_flags, engine_options

_DEMO = Path(__file__).parent.parent / "demo"


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "demo",
        usage="tilewise demo [OPTION ...]",
        description="Ask the demo model about its pictures: reading, colour and shape, counting, comparing two "
        "pictures, a follow-up turn, a Chinese question, and small print that only tiling makes legible. "
        "Exits 1 if an answer is wrong.",
    )
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from tilewise.entrypoints.llm import LLM

    console = Console(width=120)
    started = time.perf_counter()
    llm = LLM(**engine_options(options))
    console.print(f"Model {llm.config.model} loaded in {time.perf_counter() - started:.1f} s")
    console.print(f"Pictures in {_DEMO / 'pictures'}", soft_wrap=True)
    table = Table()
    for title in ("task", "pictures", "question", "answer", "expected", "seconds"):
        table.add_column(title, overflow="fold")  # nothing is cut off
    wrong = 0
    for item in json.loads((_DEMO / "questions.json").read_text(encoding="utf-8")):
        for row in answer_turns(llm, item):
            wrong += row["answer"] != row["expected"]
            seconds = f"{row['seconds']:.2f}"
            table.add_row(item["task"], row["pictures"], row["question"], row["answer"], row["expected"], seconds)
    console.print(table)
    console.print("All answers are right." if not wrong else f"{wrong} answers are wrong.")
    return 1 if wrong else 0


def answer_turns(llm: Any, item: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask the turns of one conversation, each after the model's own earlier answers."""
    from tilewise.sampling_params import SamplingParams

    paths = [_DEMO / "pictures" / name for name in item["pictures"]]
    messages: list[dict[str, Any]] = []
    rows = []
    for number, turn in enumerate(item["turns"]):
        messages.append(user_message(turn["question"], paths if number == 0 else []))
        started = time.perf_counter()
        output = llm.chat(messages, SamplingParams(temperature=0, max_tokens=64, skip_special_tokens=False))[0]
        answer = output.outputs[0].text
        messages.append({"role": "assistant", "content": answer})
        shown = "\n".join(path.name for path in paths) if number == 0 else "(same)"
        rows.append(
            {
                "pictures": shown,
                "question": turn["question"],
                "answer": answer,
                "expected": turn["answer"],
                "seconds": time.perf_counter() - started,
            }
        )
    return rows


def user_message(question: str, paths: list[Path]) -> dict[str, Any]:
    """Return a message with a question about pictures; several are numbered, as the model cards do."""
    from tilewise.inputs.media.images import open_image

    if len(paths) > 1:
        question = "".join(f"Image-{number}: <image>\n" for number in range(1, len(paths) + 1)) + question
    parts: list[dict[str, Any]] = [{"type": "image_pil", "image_pil": open_image(path)} for path in paths]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
