"""Pictures and texts with which activations are measured: a small set that ships, or a user's folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tilewise.errors import InvalidConfig, InvalidMedia, InvalidRequest, TooLong
from tilewise.inputs.media.images import open_image
from tilewise.inputs.pieces import Message
from tilewise.inputs.prepare import Preparer, TemplateOptions
from tilewise.sampling_params import SamplingParams
from tilewise.types import Request

logger = logging.getLogger("tilewise")

MOST_SAMPLES = 48
"""Samples that are used unless another number is asked for."""
_TILES = {"max_dynamic_patch": 2}
"""Limit of tiles a picture: more bring little that is new, and each costs as much as a page of text."""
_LONGEST = 2048
"""Most tokens of a sample without pictures; later ones are cut off."""
_DEMO = Path(__file__).parent.parent / "demo"
_QUESTIONS = (
    "What is in this picture?",
    "Describe the picture in detail.",
    "Read all text in the picture.",
    "How many objects are there, and of what colour?",
    "请描述这张图片。",
    "Answer in one word: what is the main thing here?",
)


@dataclass(frozen=True)
class Sample:
    """A conversation of a user and a model, whose first turn may bring pictures."""

    turns: tuple[str, ...]
    """Texts of user and model in turn, a user's first."""
    pictures: tuple[Image.Image, ...] = ()


def shipped_samples() -> Iterator[Sample]:
    """Yield the demo's pictures with questions and answers, drawings, and texts of several kinds."""
    for number, item in enumerate(json.loads((_DEMO / "questions.json").read_text(encoding="utf-8"))):
        turns = [text for turn in item["turns"] for text in (turn["question"], turn["answer"])]
        yield Sample(tuple(turns), tuple(open_image(_DEMO / "pictures" / name) for name in item["pictures"]))
        yield Sample((_TEXTS[number % len(_TEXTS)],))
    for number in range(12):
        yield Sample((_QUESTIONS[number % len(_QUESTIONS)],), (_drawing(number),))
        yield Sample((_TEXTS[(number + 8) % len(_TEXTS)],))


def samples_of(folder: Path) -> Iterator[Sample]:
    """Yield a user's pictures and prompts, in the order of their names.

    A .txt file is one prompt; a line of a .jsonl file is a prompt as a JSON text, or an object with `prompt` and,
    if there are any, `images` (paths in the folder); each other file is a picture, and a sample of its own unless a
    .jsonl file names it. Raises InvalidMedia for a picture that cannot be read, InvalidRequest for a file or a line
    that holds no such prompt, InvalidConfig for a folder without files.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise InvalidConfig(f"calibration: {folder} has no files; put pictures there, or .txt and .jsonl with prompts.")
    lines = {path: _read_lines(path, folder) for path in files if path.suffix == ".jsonl"}
    shown = {picture.resolve() for found in lines.values() for _, pictures in found for picture in pictures}
    for number, path in enumerate(files):
        if path.suffix == ".jsonl":
            for prompt, pictures in lines[path]:
                yield Sample((prompt,), tuple(map(open_image, pictures)))
        elif path.suffix == ".txt":
            if not (text := _read_text(path)).strip():
                raise InvalidRequest(f"{path} is empty: write a prompt into it, or take it out of the folder.")
            yield Sample((text,))
        elif path.resolve() not in shown:
            yield Sample((_QUESTIONS[number % len(_QUESTIONS)],), (open_image(path),))


def prepared(samples: Iterator[Sample], preparer: Preparer, most: int | None = None) -> list[Request]:
    """Return the first samples as requests with token ids and tiles, at most `most` of them, or the usual number.

    Samples that are too long for the model are left out, and logged. Raises InvalidConfig where no sample fits.
    """
    found: list[Request] = []
    left_out = 0
    for sample in samples:
        if len(found) == (most or MOST_SAMPLES):
            break
        roles = ("user", "assistant")
        messages = [
            Message(roles[place % 2], text, images=0 if place else len(sample.pictures))
            for place, text in enumerate(sample.turns)
        ]
        if len(sample.turns) % 2 == 0:
            messages.append(Message("user", _QUESTIONS[1]))
        try:
            keep = None if sample.pictures else min(_LONGEST, preparer.max_model_len - 1)
            options = TemplateOptions(processor=_TILES, keep_last=keep, cut="right")
            request = preparer.chat(messages, sample.pictures, SamplingParams(max_tokens=1), options)
        except TooLong:
            left_out += 1
            continue
        found.append(request)
    if left_out:
        logger.warning("calibration: %d samples do not fit in the model's context, and are left out", left_out)
    if not found:
        raise InvalidConfig("calibration: no sample fits in the model's context; give shorter prompts.")
    return found


def samples_digest(requests: Sequence[Request]) -> str | None:
    """Return a digest of the tokens and pixels of all samples; None where there are no samples."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(repr(request.prompt_ids).encode())
        for image in request.images:
            digest.update(b"".join(tile.digest for tile in image.tiles))
    return digest.hexdigest() if requests else None


def about_samples(requests: Sequence[Request], shipped: bool) -> str:
    """Describe the samples in words, for the model card."""
    if not requests:
        return "none: the scheme needs none"
    tokens = sum(len(request.prompt_ids) for request in requests)
    tiles = sum(request.num_tiles for request in requests)
    where = "shipped with Tilewise" if shipped else "of the user's own"
    return f"{len(requests)} samples {where}: {tokens:,} tokens, of which {tiles:,} tiles of pictures"


def _read_lines(path: Path, folder: Path) -> list[tuple[str, list[Path]]]:
    """Read the prompts of a .jsonl file, each with its pictures."""
    found = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{where} is not JSON ({error}).") from None
        found.append(_read_prompt({"prompt": value} if isinstance(value, str) else value, where, folder))
    if not found:
        raise InvalidRequest(f"{path} has no prompts: write some into it, or take it out of the folder.")
    return found


def _read_prompt(value: Any, where: str, folder: Path) -> tuple[str, list[Path]]:
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str) or set(value) - {"prompt", "images"}:
        raise InvalidRequest(
            f'{where} must be a JSON text, or an object with "prompt" and perhaps "images", got {value!r:.80}.'
        )
    images = value.get("images", [])
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise InvalidRequest(f'{where}: "images" must be a list of paths in the folder, got {images!r:.80}.')
    pictures = [folder / name for name in images]
    for picture in pictures:
        if not picture.resolve().is_relative_to(folder.resolve()):
            raise InvalidMedia(f"{where}: {picture} lies outside {folder}.")
        if not picture.is_file():
            raise InvalidMedia(f"{where}: {picture}: no such file.")
    return value["prompt"], pictures


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise InvalidRequest(f"{path} is not text in UTF-8 ({error}).") from None


def _drawing(number: int) -> Image.Image:
    """Draw figures, lines and words in colours that follow from the number alone."""
    width, height = ((640, 480), (448, 896), (900, 450), (512, 512))[number % 4]
    shade = 255 - 20 * (number % 5)
    picture = Image.new("RGB", (width, height), (shade, 255 - 7 * number, 200 + 4 * number))
    draw = ImageDraw.Draw(picture)
    for place in range(3 + number):
        x, y = (97 * place * (number + 3)) % width, (61 * place * (number + 5)) % height
        size = 24 + 11 * ((place + number) % 7)
        colour = ((53 * place) % 256, (101 * (place + number)) % 256, (29 * number + 71 * place) % 256)
        shape = (draw.ellipse, draw.rectangle, draw.line)[place % 3]
        shape((x, y, x + size, y + size), fill=colour)
        draw.text((x, y + size), f"Item {place + 1}: {17 * place + number} EUR", fill=(0, 0, 0))
    return picture


_TEXTS = (
    "A lighthouse keeper writes down the weather four times a day. On Monday the wind came from the west, on Tuesday "
    "it turned south, and by the end of the week a storm had passed. How many notes are in the book after seven days?",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n\nExplain this function.",
    "请用三句话介绍茶是怎样制成的：采摘、萎凋、揉捻、发酵和干燥各有什么作用？",
    "| city | people | area in km2 |\n|---|---|---|\n| Oslo | 709,037 | 454 |\n| Turin | 847,287 | 130 |\n"
    "| Graz | 298,479 | 128 |\nWhich of these cities has the most people for each square kilometre?",
    "Solve for x: 3x + 7 = 2(x - 4) + 21. Write each step on a line of its own, then check the result by putting it "
    "back into the equation.",
    "Translate into French, German and Japanese: The train to the coast leaves at a quarter past nine from platform "
    "four, and seats are reserved.",
    '{"order": 1882, "items": [{"name": "lamp", "price": 39.9}, {"name": "bulb", "price": 4.5, "count": 3}], '
    '"paid": false}\nWhat is the total of this order, and what is still to be paid?',
    "Dear Ms Okafor, thank you for your letter of 3 May. We are sorry that the parcel arrived damaged. A replacement "
    "left our store this morning; you need not send anything back. Summarise this letter in one sentence.",
    "Water boils at a lower temperature on a mountain. Why is that, and what does it mean for someone who cooks rice "
    "at three thousand metres?",
    "SELECT name, SUM(amount) FROM sales WHERE year = 2024 GROUP BY name HAVING SUM(amount) > 1000 ORDER BY 2 DESC;\n"
    "Say in plain words what this query returns.",
    "一个水池有两个进水管。甲管单独注满需要六小时，乙管单独注满需要四小时。两管同时打开，多长时间可以注满水池？",
    "Write a short story about a clockmaker who repairs a clock that runs backwards. It should have a beginning, a "
    "turn and an end, and no more than one hundred and fifty words.",
    "List five differences between a comet and an asteroid. Use bullet points, and name one example of each.",
    "¿Qué ingredientes lleva una tortilla de patatas y en qué orden se preparan? Responde con una lista numerada.",
    "Patient is a 54-year-old man with a cough for three weeks, no fever, and a history of smoking. Which questions "
    "would a doctor ask next? This is an exercise for students, not advice.",
    "The quick survey of 1,204 readers found that 38 % read on paper, 45 % on a screen and the others do both. How "
    "many readers do both? Round to a whole number.",
)
"""Prompts of several kinds and languages."""
