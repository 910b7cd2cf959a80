"""The spot check as a command: asks, judges, prints, and writes what was asked for."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from tilewise.assets import ImageAsset
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.evals.answer import Answer
from tilewise.evals.output import as_json, check_writable, write_text
from tilewise.evals.spot.cases import CASES, PICTURES, Case
from tilewise.evals.spot.verdict import fault
from tilewise.inputs.images import ImageLimits, open_image
from tilewise.llm import LLM
from tilewise.sampling_params import SamplingParams


@dataclass(frozen=True)
class Picture:
    name: str
    pixels: Image.Image


@dataclass(frozen=True)
class Checked:
    """One case with what came of it."""

    case: Case
    picture: str
    answer: Answer
    seconds: float
    fault: str | None

    @property
    def verdict(self) -> str:
        return "PASS" if self.fault is None else f"FAIL: {self.fault}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.case.name,
            "category": self.case.category,
            "picture": self.picture,
            "prompt": self.case.prompt,
            "answer": self.answer.text,
            "tokens": len(self.answer.token_ids),
            "seconds": round(self.seconds, 3),
            "verdict": self.verdict,
        }


def spot_check(
    engine: dict[str, Any], images: Sequence[str], max_tokens: int, json_file: Path | None, log_file: Path | None
) -> int:
    """The exit code: 1 if a case did not pass."""
    for file in (json_file, log_file):
        check_writable(file.parent if file else None)
    pictures = read_pictures(images, EngineConfig.of(**engine))
    started = time.monotonic()
    with LLM(**engine) as llm:
        loading = time.monotonic() - started
        checked = []
        for item in check(llm, pictures, max_tokens):
            checked.append(item)
            if log_file:
                append_log(log_file, item)
    report = {"model": llm.config.model, "load_seconds": round(loading, 3), "cases": [c.as_dict() for c in checked]}
    if json_file:
        write_text(json_file, as_json(report))
    show(checked, llm.config.model, loading)
    return 1 if any(item.fault for item in checked) else 0


def read_pictures(images: Sequence[str], config: EngineConfig) -> list[Picture]:
    if len(images) > 2:
        raise InvalidConfig(f"The five cases are about one picture or two, got {len(images)}.")
    limits = ImageLimits.of(config)
    given = [Picture(Path(image).name, open_image(image, limits)) for image in images]
    return given or [Picture(name, ImageAsset(name).pil_image) for name in PICTURES]


def check(llm: LLM, pictures: Sequence[Picture], max_tokens: int) -> Iterator[Checked]:
    """Case by case, so that each has a time of its own."""
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
    for case in CASES:
        picture = pictures[min(case.picture, len(pictures) - 1)]
        content = [{"type": "image_pil", "image_pil": picture.pixels}, {"type": "text", "text": case.prompt}]
        started = time.monotonic()
        output = llm.chat([{"role": "user", "content": content}], sampling)[0]
        answer = Answer.of(output, scored=0)
        yield Checked(case, picture.name, answer, time.monotonic() - started, fault(answer, case))


def append_log(file: Path, item: Checked) -> None:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with file.open("a", encoding="utf-8") as log:
        log.write(f"{now} {json.dumps(item.as_dict(), ensure_ascii=False)}\n")


def show(checked: Sequence[Checked], model: str, loading: float) -> None:
    console = Console(width=120)
    table = Table(title=f"{model}, loaded in {loading:.1f} s")
    for title in ("case", "picture", "question", "answer", "tokens", "seconds", "verdict"):
        table.add_column(title, justify="right" if title in ("tokens", "seconds") else "left", overflow="fold")
    for item in checked:
        numbers = str(len(item.answer.token_ids)), f"{item.seconds:.2f}"
        table.add_row(item.case.name, item.picture, item.case.prompt, item.answer.text, *numbers, item.verdict)
    console.print(table)
    passed = sum(item.fault is None for item in checked)
    console.print(f"{passed} of {len(checked)} pass. A verdict says that there is an answer, not that it is true.")
