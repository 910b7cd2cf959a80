"""Golden answers: what the demo model says, and how surely, where the arithmetic is right; and their comparison.

`demo/golden.json` has them for each arithmetic, computed in float32 by torch's plain ops (`training/golden.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import tilewise
from tilewise.doctor.modes import PLAIN, ROUNDED, Arithmetic, Mode, plain_ops
from tilewise.errors import InvalidConfig
from tilewise.inputs.media.images import open_image
from tilewise.inputs.pieces import IMAGE_MARKER, Message
from tilewise.types import Request, RequestOutput, Tile

DEMO = Path(tilewise.__file__).parent / "demo"
FILE = DEMO / "golden.json"
_LENGTH, _SCORES = 24, 5
_LIKELY = -7.0
"""Least log-probability that is compared: what is less likely is noise of a trained model."""
_TEXT = "Which shapes do you know?"
"""A question without a picture, beside those of the demo."""


@dataclass(frozen=True)
class GoldenAnswer:
    """The answer to one question: its tokens, and the likeliest tokens at each place with their log-probabilities."""

    question: str
    prompt: str
    """Digest of the prompt's ids and of its tiles' pixels."""
    text: str
    tokens: list[int]
    scores: list[dict[str, float]]

    @classmethod
    def of(cls, question: str, request: Request, output: RequestOutput) -> GoldenAnswer:
        answer = output.outputs[0]
        scores = [{str(token): round(one.logprob, 4) for token, one in row.items()} for row in answer.logprobs or ()]
        return cls(question, _digest(request), answer.text, list(answer.token_ids), scores)


def _digest(request: Request) -> str:
    """Digest what a model is given, ids and pixels: the same bytes on every machine."""
    found = hashlib.sha256(json.dumps(request.prompt_ids).encode())
    for image in request.images:
        for tile in image.tiles:
            assert isinstance(tile, Tile)
            found.update(tile.pixels.tobytes())
    return found.hexdigest()[:32]


Golden = dict[Arithmetic, list[GoldenAnswer]]


def read_golden(file: Path = FILE) -> Golden:
    found = json.loads(file.read_text(encoding="utf-8"))
    return {name: [GoldenAnswer(**answer) for answer in found[name]] for name in get_args(Arithmetic)}


def compute_golden() -> Golden:
    """Compute the golden answers on this machine, as they are defined."""
    with models() as model_of, plain_ops():
        return {name: ask(model_of(name), {**PLAIN, **ROUNDED[name]}) for name in get_args(Arithmetic)}


def write_golden(file: Path, golden: Golden) -> None:
    """Write a file with one answer a line."""
    parts = []
    for name, answers in golden.items():
        rows = ",\n".join(json.dumps(asdict(answer), ensure_ascii=False) for answer in answers)
        parts.append(f"{json.dumps(name)}: [\n{rows}\n]")
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


@contextmanager
def models() -> Iterator[Callable[[Arithmetic], str]]:
    """Yield a function from an arithmetic to the model that has it; w4a16 is rounded when it is wanted first."""
    with TemporaryDirectory(prefix="tilewise-golden-") as folder:
        quantised = cache(_quantised)
        yield lambda arithmetic: quantised(Path(folder) / "demo-w4a16") if arithmetic == "w4a16" else "demo"


def _quantised(folder: Path) -> str:
    from tilewise.quantize import QuantizeOptions
    from tilewise.quantize.run import quantize

    with plain_ops():
        quantize(QuantizeOptions(model="demo", out=str(folder), scheme="w4a16", error_feedback=False), show=False)
    return str(folder)


def ask(model: str, options: dict[str, Any]) -> list[GoldenAnswer]:
    """Ask one engine all questions at once, and return its answers. Raises the errors of `LLM`."""
    from tilewise.entrypoints.llm import LLM
    from tilewise.sampling_params import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=_LENGTH, logprobs=_SCORES, skip_special_tokens=False)
    with LLM(model, **{"max_model_len": 1024, "max_num_seqs": 8, **options}) as llm:
        asked = list(_questions())
        requests = [llm.inputs.chat([_message(*one)], list(map(open_image, one[1])), sampling) for one in asked]
        outputs = dict(llm.answer_each(requests))
    return [GoldenAnswer.of(asked[number][0], requests[number], outputs[number]) for number in range(len(asked))]


def _questions() -> Iterator[tuple[str, list[Path]]]:
    for item in json.loads((DEMO / "questions.json").read_text(encoding="utf-8")):
        # A later turn may need what was said before; a box does not, and its answer has the most tokens.
        turn = next((turn for turn in item["turns"] if "<box>" in turn["answer"]), item["turns"][0])
        yield turn["question"], [DEMO / "pictures" / name for name in item["pictures"]]
    yield _TEXT, []


def _message(question: str, pictures: Sequence[Path]) -> Message:
    """Return a question about pictures, several of which are numbered, as the demo was trained."""
    numbered = [f"Image-{number}: {IMAGE_MARKER}\n" for number in range(1, len(pictures) + 1)]
    return Message("user", "".join(numbered if len(pictures) > 1 else []) + question, images=len(pictures))


Verdict = Literal["right", "off", "failed", "not here"]


@dataclass(frozen=True)
class ModeReport:
    """The outcome of one mode."""

    mode: str
    verdict: Verdict
    right: int = 0
    """Answers that are the golden ones."""
    questions: int = 0
    worst: float | None = None
    """Largest difference of a log-probability from the golden one."""
    allowed: float | None = None
    why: str = ""


def try_mode(mode: Mode, model: str, golden: Sequence[GoldenAnswer]) -> ModeReport:
    """Ask all questions in one mode, and compare. Nothing that goes wrong raises."""
    try:
        with plain_ops(mode.plain):
            found = ask(model, mode.options)
    except InvalidConfig as error:
        return ModeReport(mode.name, "not here", why=str(error))
    except Exception as error:  # whatever a new device does wrong, the other modes are tried
        return ModeReport(mode.name, "failed", why=f"{type(error).__name__}: {error}")
    return compare(mode, found, golden)


def compare(mode: Mode, found: Sequence[GoldenAnswer], golden: Sequence[GoldenAnswer]) -> ModeReport:
    pairs = list(zip(found, golden, strict=True))
    worst = max(difference(one, true) for one, true in pairs)
    right = sum(one.tokens == true.tokens for one, true in pairs)
    whys = [f"{true.question!r} was prepared as another prompt" for one, true in pairs if one.prompt != true.prompt]
    whys += [f"{true.question!r}: {one.text!r}, not {true.text!r}" for one, true in pairs if one.tokens != true.tokens]
    whys += [] if worst <= mode.allowed else [f"a log-probability is off by {worst:.4f}, allowed is {mode.allowed:g}"]
    verdict: Verdict = "off" if whys else "right"
    return ModeReport(mode.name, verdict, right, len(pairs), worst, mode.allowed, "; ".join(whys))


def difference(found: GoldenAnswer, golden: GoldenAnswer) -> float:
    """Return the largest difference of a likely token's log-probability, up to the first token that differs.

    A likely token that is not among the likeliest any more is as far off as the least of those says, at least.
    """
    worst = 0.0
    for place, (ours, true) in enumerate(zip(found.scores, golden.scores, strict=False)):
        least = min(ours.values())
        likely = {token: value for token, value in true.items() if value >= _LIKELY}
        gaps = [abs(ours[token] - value) if token in ours else value - least for token, value in likely.items()]
        if any(map(math.isnan, gaps)):
            return math.inf
        worst = max([worst, *gaps])
        if found.tokens[place] != golden.tokens[place]:
            break
    return worst
