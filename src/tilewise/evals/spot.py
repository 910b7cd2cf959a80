"""A spot check: five questions about one or two pictures, each with a verdict by rule."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from rich.table import Table

from tilewise.assets import ImageAsset
from tilewise.config import EngineConfig
from tilewise.entrypoints.llm import LLM
from tilewise.errors import InvalidConfig
from tilewise.eval_options import SpotOptions
from tilewise.evals.question import ModelAnswer
from tilewise.evals.results import as_json, check_outputs, print_report, write_text
from tilewise.inputs.media.images import ImageLimits, open_image
from tilewise.sampling_params import SamplingParams
from tilewise.types import TokenIds

Language = Literal["English", "Chinese"]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    category: str
    """The benchmark that asks questions of this kind."""
    picture: int
    """Index of the picture, from 0; with a single picture it is always that one."""
    prompt: str
    language: Language = "English"
    words: bool = True
    """True if an answer without a letter fails; what is written in a picture may be a number."""


CASES = (
    Case("text", "TextVQA", 0, "What is the text in the illustration?", words=False),
    Case("first description", "DocVQA", 0, "Please provide a detailed description of this image."),
    Case("second description", "ChartQA", 1, "Describe what you see in this image, and name its main colors."),
    Case("reasoning", "Reasoning", 0, "Where might this picture have been taken, and how can you tell?"),
    Case("Chinese", "General", 1, "请用中文描述这张图片的内容。", "Chinese"),
)
"""The five cases of the guides' test of InternVL2-2B: reading, two descriptions, reasoning and Chinese."""
PICTURES = ("stop_sign", "cherry_blossom")
"""Sample pictures for callers that bring none."""


_CHINESE = re.compile(r"[\u3400-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
LONGEST_PERIOD, REPEATS, SHORTEST = 32, 4, 8
"""An answer repeats itself if a stretch of at most LONGEST_PERIOD tokens stands REPEATS times in a row, over at least
SHORTEST tokens."""


def fault(answer: ModelAnswer, case: Case) -> str | None:
    """Return what is wrong with an answer, or None if it passes.

    An answer passes if it is not empty, ended by itself, does not repeat itself, holds no character that could not be
    decoded, and is in words of the language of its question.
    """
    if not answer.text.strip():
        return "empty"
    if repeats(answer.token_ids):
        return "repeats itself"
    if answer.finish_reason != "stop":
        return f"cut off after {len(answer.token_ids)} tokens"
    if "\ufffd" in answer.text:
        return "characters that cannot be decoded"
    language = language_of(answer.text)
    if language is None:
        return "no words" if case.words else None
    return None if language == case.language else f"not in {case.language}"


def repeats(ids: TokenIds) -> bool:
    """Return whether some stretch of tokens stands four times in a row."""
    return any(_runs(ids, period) >= max(REPEATS * period, SHORTEST) for period in range(1, LONGEST_PERIOD + 1))


def _runs(ids: TokenIds, period: int) -> int:
    """Return the tokens of the longest stretch in which every token is the one `period` before it."""
    equal = groupby(earlier == later for earlier, later in zip(ids, ids[period:], strict=False))
    longest = max((len(list(pairs)) for same, pairs in equal if same), default=0)
    # `longest` pairs of equal tokens, `period` apart, span so many tokens and `period` more.
    return longest + period if longest else 0


def language_of(text: str) -> Language | None:
    """Return the language of most letters; None where there are no letters, as in a number."""
    letters, chinese = len(_LETTER.findall(text)), len(_CHINESE.findall(text))
    return None if not letters else "Chinese" if 2 * chinese >= letters else "English"


@dataclass(frozen=True)
class Picture:
    name: str
    pixels: Image.Image


@dataclass(frozen=True)
class CaseResult:
    """A case with its answer and what is wrong with that."""

    case: Case
    picture: str
    answer: ModelAnswer
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


def spot_check(options: SpotOptions, engine: dict[str, Any]) -> int:
    """Ask all cases, write and show what came of them, and return the exit code: 1 if a case did not pass."""
    check_outputs(options.json, options.log)
    pictures = read_pictures(options.image, EngineConfig.of(**engine))
    started = time.monotonic()
    with LLM(**engine) as llm:
        loading = time.monotonic() - started
        checked = []
        for item in check(llm, pictures, options.max_tokens):
            checked.append(item)
            if options.log:
                append_log(options.log, item)
    model, passed = llm.config.model, sum(item.fault is None for item in checked)
    if options.json:
        cases = [item.as_dict() for item in checked]
        write_text(options.json, as_json({"model": model, "load_seconds": round(loading, 3), "cases": cases}))
    summary = f"{passed} of {len(checked)} pass. A verdict says that there is an answer, not that it is true."
    print_report(_table(checked, f"{model}, loaded in {loading:.1f} s"), [summary])
    return 0 if passed == len(checked) else 1


def read_pictures(images: Sequence[str], config: EngineConfig) -> list[Picture]:
    if len(images) > 2:
        raise InvalidConfig(f"The five cases are about one picture or two, got {len(images)}.")
    limits = ImageLimits.of(config)
    given = [Picture(Path(image).name, open_image(image, limits)) for image in images]
    return given or [Picture(name, ImageAsset(name).pil_image) for name in PICTURES]


def check(llm: LLM, pictures: Sequence[Picture], max_tokens: int) -> Iterator[CaseResult]:
    """Ask case by case, so that each has a time of its own."""
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
    for case in CASES:
        picture = pictures[min(case.picture, len(pictures) - 1)]
        content = [{"type": "image_pil", "image_pil": picture.pixels}, {"type": "text", "text": case.prompt}]
        started = time.monotonic()
        output = llm.chat([{"role": "user", "content": content}], sampling)[0]
        answer = ModelAnswer.of(output, scored=0)
        yield CaseResult(case, picture.name, answer, time.monotonic() - started, fault(answer, case))


def append_log(file: Path, item: CaseResult) -> None:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with file.open("a", encoding="utf-8") as log:
        log.write(f"{now} {json.dumps(item.as_dict(), ensure_ascii=False)}\n")


def _table(checked: Sequence[CaseResult], title: str) -> Table:
    table = Table(title=title)
    for title in ("case", "picture", "question", "answer", "tokens", "seconds", "verdict"):
        table.add_column(title, justify="right" if title in ("tokens", "seconds") else "left", overflow="fold")
    for item in checked:
        numbers = str(len(item.answer.token_ids)), f"{item.seconds:.2f}"
        table.add_row(item.case.name, item.picture, item.case.prompt, item.answer.text, *numbers, item.verdict)
    return table
