"""Probes: short conversations that two servers of one model count alike only if they make the same prompts of them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import tilewise
from tilewise.chat_server import data_url
from tilewise.inputs.pieces import Message
from tilewise.resize import Size

QUESTION = "What is this?"
_DEMO = Path(tilewise.__file__).parent / "demo"
_PICTURE = _DEMO / "pictures" / "follow_up.png"
_VIDEO = _DEMO / "videos" / "baby_reading.mp4"
_UPSIDE_DOWN = 3
"""EXIF's orientation of a picture that was taken upside down."""
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class TextProbe:
    """A conversation without pictures."""

    name: str
    messages: tuple[Message, ...]

    @property
    def wire(self) -> list[dict[str, Any]]:
        return [{"role": message.role, "content": message.text} for message in self.messages]


def text_probes(marks: Sequence[str]) -> list[TextProbe]:
    """Return the probes; `marks` are special tokens of the model, which a user may write."""

    def asked(name: str, text: str) -> TextProbe:
        return TextProbe(name, (Message("user", text),))

    turns = (Message("user", "Name a colour."), Message("assistant", "Red."), Message("user", "Another one?"))
    return [
        asked("one question", QUESTION),
        TextProbe("system message", (Message("system", "Answer in one word."), Message("user", QUESTION))),
        TextProbe("several turns", turns),
        asked("white space", "  two  spaces,\n\n a tab\t, and a line break at the end \n"),
        asked("special tokens in text", f"What does {' and '.join(marks)} mean?"),
        asked("other scripts", "请描述这张图片。 Größe, naïve, Ω≈3, 👍🏽"),
        asked("numbers and code", "1234567890 and 3.14159\ndef f(x):\n\treturn {'a': x[0]}"),
    ]


@dataclass(frozen=True)
class PictureProbe:
    """A question about pictures of these sizes, in a form that servers read in different ways."""

    name: str
    wire: list[dict[str, Any]]
    sizes: tuple[Size, ...] = ()
    """Sizes of the pictures; empty for a video, whose frames are a tile each."""


def picture_probes(side: int, frames: int | None = None) -> Iterator[PictureProbe]:
    """Yield probes for tiles of so many pixels, and one of a video if it is asked for with a number of frames."""
    shapes: dict[str, Size] = {
        "one tile": (side, side),
        "tiny": (32, 24),
        "wide": (3 * side, side),
        "tall": (side, 4 * side),
        "large": (4 * side, 3 * side),
        "banner": (6 * side, side // 2),
        "odd size": (side * 23 // 10, side * 17 // 10),
    }
    for name, size in shapes.items():
        yield PictureProbe(name, question(picture_part(_gradient(size))), (size,))
    for name, mode in (("transparent", "RGBA"), ("palette", "P"), ("grey", "L")):
        yield PictureProbe(name, question(picture_part(_gradient((2 * side, side)).convert(mode))), ((2 * side, side),))
    pair = ((2 * side, 2 * side), (3 * side, 2 * side))
    yield PictureProbe("two pictures", question(*(picture_part(_gradient(size)) for size in pair)), pair)
    behind = question(picture_part(_gradient((2 * side, side))), text_first=True)
    yield PictureProbe("text before picture", behind, ((2 * side, side),))
    if frames is not None:
        part = {"type": "video_url", "video_url": {"url": data_url("video/mp4", _VIDEO.read_bytes())}}
        yield PictureProbe(f"video, {frames} frames", question(part))


def question(*parts: dict[str, Any], text: str = QUESTION, text_first: bool = False) -> list[dict[str, Any]]:
    words = {"type": "text", "text": text}
    return [{"role": "user", "content": [words, *parts] if text_first else [*parts, words]}]


def picture_part(picture: Image.Image, exif: Image.Exif | None = None) -> dict[str, Any]:
    """Return a picture as a part of a message, as a data URL of PNG, which keeps every pixel."""
    content = io.BytesIO()
    picture.save(content, "PNG", **({} if exif is None else {"exif": exif}))
    return {"type": "image_url", "image_url": {"url": data_url("image/png", content.getvalue())}}


def _gradient(size: Size) -> Image.Image:
    """Return a picture that differs everywhere, and is small as a file."""
    red, green = (Image.linear_gradient("L").rotate(turn).resize(size) for turn in (0, 90))
    return Image.merge("RGB", (red, green, Image.new("L", size, 90)))


def looks() -> dict[str, list[dict[str, Any]]]:
    """Return questions whose first token tells what a server makes of a picture, where counts are equal.

    What is sent as `turned` is `upright` in the file that a camera writes which was held upside down. Of `transparent`,
    what is behind decides whether it is `on white` or `on black`.
    """
    picture = Image.open(_PICTURE).convert("RGB")
    over, exif = picture.rotate(180), Image.Exif()
    exif[_ORIENTATION] = _UPSIDE_DOWN
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (0, 0, picture.width // 2, picture.height))
    clear = picture.convert("RGBA")
    clear.putalpha(mask)
    ask = "Where is the orange cross?"
    sent = {
        "upright": picture_part(picture),
        "upside down": picture_part(over),
        "turned": picture_part(over, exif),
        "transparent": picture_part(clear),
        **{f"on {colour}": picture_part(_on(picture, mask, colour)) for colour in ("white", "black")},
    }
    found = {name: question(part, text=ask) for name, part in sent.items()}
    return {**found, "text first": question(sent["upright"], text=ask, text_first=True)}


def _on(picture: Image.Image, mask: Image.Image, colour: str) -> Image.Image:
    return Image.composite(picture, Image.new("RGB", picture.size, colour), mask)
