"""Golden answers: what the demo model says, and how surely, where the arithmetic is right; and their comparison.

Compared are modes: the ways of computing that an engine can be told to take, each with the answers that it has to give.

`demo/golden.json` has them for each arithmetic, computed in float32 by torch's plain ops (`training/golden.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import tilewise
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.inputs.media.images import open_image
from tilewise.inputs.pieces import Message, numbered
from tilewise.platforms import DeviceKind, current_platform
from tilewise.types import Request, RequestOutput, Tile

Arithmetic = Literal["floats", "int8", "fp8", "w4a16", "int8 cache", "fp8 cache"]
"""Options that round on purpose. Modes of one arithmetic agree within rounding, so they share golden answers."""

ROUNDED: dict[Arithmetic, dict[str, Any]] = {
    "floats": {},
    "int8": {"quantization": "int8"},
    "fp8": {"quantization": "fp8"},
    "w4a16": {},
    "int8 cache": {"kv_cache_dtype": "int8"},
    "fp8 cache": {"kv_cache_dtype": "fp8"},
}
"""Options of the engine for each arithmetic; w4a16 is a checkpoint of its own."""
PLAIN = {"dtype": "float32", "device": "cpu", "enforce_eager": True}
"""Options beside `plain_ops` of what is true by definition."""
_FLOAT32, _BFLOAT16, _FLOAT16 = 2e-3, 0.5, 0.06
_INT8, _ROUNDED = 0.25, 0.03
"""Most for rows that are rounded to int8 as they come, where a sum in another order falls to the other side of a half;
and for weights or caches that are rounded."""


@dataclass(frozen=True)
class Mode:
    """A way of computing, and how far log-probabilities may be from golden ones."""

    name: str
    allowed: float
    options: dict[str, Any] = field(default_factory=dict)
    arithmetic: Arithmetic = "floats"
    plain: bool = False
    """True for torch's ops where a CPU has kernels of ours."""


def modes_here(device: DeviceKind = "auto") -> list[Mode]:
    """Return the modes of a device; with "auto" those of the CPU, and of a GPU or an NPU if there is one.

    Raises InvalidConfig for a device that is not there.
    """
    name = current_platform(device).name
    devices = dict.fromkeys(("cpu", name) if device == "auto" else (name,))
    return [mode for device in devices for mode in _of_device(device)]


def _of_device(device: str) -> Iterator[Mode]:
    def mode(name: str, allowed: float, arithmetic: Arithmetic = "floats", plain: bool = False, **more: Any) -> Mode:
        options = {"device": device, "dtype": "float32", **ROUNDED[arithmetic], **more}
        return Mode(f"{device}, {name}", allowed, options, arithmetic, plain)

    if device == "cpu":
        yield mode("float32, torch's ops", _FLOAT32, plain=True, enforce_eager=True)
    yield mode("float32, op by op", _FLOAT32, enforce_eager=True)
    yield mode("float32, graphs", _FLOAT32)
    yield mode("bfloat16", _BFLOAT16, dtype="bfloat16")
    yield mode("float16", _FLOAT16, dtype="float16")
    yield mode("int8", _INT8, "int8")
    for arithmetic in ("fp8", "w4a16", "int8 cache", "fp8 cache"):
        yield mode(arithmetic, _ROUNDED, arithmetic)
    yield mode("bfloat16, w4a16", _BFLOAT16, "w4a16", dtype="bfloat16")
    yield mode("prompts in chunks", _FLOAT32, max_num_batched_tokens=48, max_num_seqs=8)
    yield mode("overlapped steps", _FLOAT32, async_scheduling=True)
    yield mode("guessing ahead", _FLOAT32, speculative_config={"method": "ngram", "num_speculative_tokens": 4})
    if device == "cpu":
        yield mode("batch-invariant", _FLOAT32, batch_invariant=True)
        yield mode("a vision worker", _FLOAT32, vision_workers=1)
    yield mode("two ranks", _FLOAT32, tensor_parallel_size=2)
    yield mode("two stages", _FLOAT32, pipeline_parallel_size=2)


@contextmanager
def plain_ops(wanted: bool = True) -> Iterator[None]:
    """Let engines that are made inside compute by torch's ops, as the user's variable would."""
    before = dict(os.environ)
    if wanted:
        os.environ |= {Environment.cpu_kernels.name: "0"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


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
        requests = [
            llm.inputs.chat(
                [Message("user", numbered(question, len(files)), images=len(files))],
                list(map(open_image, files)),
                sampling,
            )
            for question, files in asked
        ]
        outputs = dict(llm.answer_each(requests))
    return [GoldenAnswer.of(asked[number][0], requests[number], outputs[number]) for number in range(len(asked))]


def _questions() -> Iterator[tuple[str, list[Path]]]:
    for item in json.loads((DEMO / "questions.json").read_text(encoding="utf-8")):
        # A later turn may need what was said before; a box does not, and its answer has the most tokens.
        turn = next((turn for turn in item["turns"] if "<box>" in turn["answer"]), item["turns"][0])
        yield turn["question"], [DEMO / "pictures" / name for name in item["pictures"]]
    yield _TEXT, []


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
