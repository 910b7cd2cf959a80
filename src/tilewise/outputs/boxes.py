"""Boxes that an answer names, as InternVL was trained to write them: `<ref>label</ref><box>[[x1, y1, x2, y2]]</box>`.

Corners are in thousandths of the picture's width and height, from its upper left corner (InternVL's model card, "Visual
grounding"). One label may have several boxes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

_NUMBER = r"\s*\d+(?:\.\d+)?\s*"
_CORNERS = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_LIST = rf"\[?\s*{_CORNERS}(?:\s*,\s*{_CORNERS})*\s*\]?"
_NAMED = re.compile(
    rf"(?:<ref>(?P<label>[^<]*)</ref>\s*)?(?:<box>\s*(?P<marked>{_LIST})\s*</box>|(?P<bare>\[{_LIST}\]))"
)
_ONE = re.compile(_CORNERS)
_SCALE = 1000
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
"""Colours of boxes, by the order in which their labels first appear."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a picture with its label, which is empty where an answer gives none; corners in thousandths."""

    label: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.right, self.bottom

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in a picture of `size` (width, height), within its borders."""
        width, height = size
        across = sorted(min(width, round(x * width / _SCALE)) for x in (self.left, self.right))
        down = sorted(min(height, round(y * height / _SCALE)) for y in (self.top, self.bottom))
        return across[0], down[0], across[1], down[1]


def read_boxes(text: str) -> list[Box]:
    """Return the boxes in an answer, in their order. Lists of other than four numbers up to 1000 are text.

    >>> read_boxes("<ref>a cat</ref><box>[[0, 0, 250, 500]]</box>")
    [Box(label='a cat', left=0.0, top=0.0, right=250.0, bottom=500.0)]
    """
    return [box for match in _NAMED.finditer(text) for box in _boxes(match)]


def without_marks(text: str) -> str:
    """Return an answer for a reader: labels alone where boxes were marked, and corners where they have no label.

    >>> without_marks("It is <ref>a cat</ref><box>[[0, 0, 250, 500]]</box>.")
    'It is a cat.'
    """
    shown = _NAMED.sub(lambda match: match["label"] or match["marked"] or match["bare"], text)
    return re.sub("</?(?:ref|box)>", "", shown)


def colours_of(boxes: Sequence[Box]) -> dict[str, str]:
    """Return a colour for each label."""
    labels = dict.fromkeys(box.label for box in boxes)
    return {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Return the picture in RGB, in its own size, with each box outlined and labelled in its label's colour."""
    shown = picture.convert("RGB").copy()
    ink, colours = ImageDraw.Draw(shown), colours_of(boxes)
    for box in boxes:
        left, top, right, bottom = box.pixels(shown.size)
        ink.rectangle((left, top, right, bottom), outline=colours[box.label], width=max(2, max(shown.size) // 300))
        if box.label:
            place = (left + 3, top + 3)
            ink.rectangle(ink.textbbox(place, box.label, font_size=16), fill=colours[box.label])
            ink.text(place, box.label, fill="white", font_size=16)
    return shown


def _boxes(match: re.Match[str]) -> Iterator[Box]:
    for corners in _ONE.findall(match["marked"] or match["bare"]):
        numbers = [float(number) for number in corners.strip("[]").split(",")]
        if max(numbers) <= _SCALE:
            yield Box((match["label"] or "").strip(), *numbers)
