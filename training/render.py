"""Drawing of the training pictures: shapes, printed text and plain backgrounds."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache

from PIL import Image, ImageDraw, ImageFont

from vocabulary import COLORS

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]

FONT_FILES: tuple[str, ...] = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansCondensed-Bold.ttf",
)
LARGEST_TEXT, USUAL_TEXT, SMALLEST_TEXT = 30, 28, 18


@dataclass(frozen=True)
class TextStyle:
    """How text is printed: how many of the fonts, sizes in pixels, and freedom of place.

    With spread 1 the text starts anywhere in its area, and the nearer to the top left corner the smaller it is.
    """

    fonts: int = len(FONT_FILES)
    sizes: tuple[int, int] = (SMALLEST_TEXT, LARGEST_TEXT)
    spread: float = 1.0


def text_style(difficulty: float) -> TextStyle:
    """The style between the easiest text (difficulty 0) and the whole variety (difficulty 1)."""
    fonts = 1 + round(difficulty * (len(FONT_FILES) - 1))
    smallest = round(USUAL_TEXT - difficulty * (USUAL_TEXT - SMALLEST_TEXT))
    largest = round(USUAL_TEXT + difficulty * (LARGEST_TEXT - USUAL_TEXT))
    return TextStyle(fonts, (smallest, largest), difficulty)


# Shapes are drawn this many times larger and shrunk, because Pillow does not smooth polygon edges.
OVERSAMPLING = 4


@cache
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font at a pixel size; Pillow finds installed fonts by their file name."""
    return ImageFont.truetype(name, size)


def star_points(center: float, radius: float) -> list[tuple[float, float]]:
    """The ten corners of a five-pointed star."""
    points = []
    for corner in range(10):
        reach = radius if corner % 2 == 0 else radius * 0.42
        angle = math.pi * (corner / 5 - 0.5)
        points.append((center + reach * math.cos(angle), center + reach * math.sin(angle)))
    return points


def heart_points(side: float) -> list[tuple[float, float]]:
    """A heart outline from the usual parametric curve, scaled into a square of the given side."""
    points = []
    for step in range(40):
        angle = 2 * math.pi * step / 40
        across = 16 * math.sin(angle) ** 3
        upward = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append(((across / 34 + 0.5) * side, (0.46 - upward / 34) * side))
    return points


@lru_cache(maxsize=4096)
def shape_mask(shape: str, size: int) -> Image.Image:
    """A gray mask of one shape that fills a square of the given size."""
    side = size * OVERSAMPLING
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    last = side - 1
    if shape == "circle":
        draw.ellipse((0, 0, last, last), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, last, last), fill=255)
        draw.ellipse((side * 0.27, side * 0.27, side * 0.73, side * 0.73), fill=0)
    elif shape == "square":
        draw.rectangle((side * 0.06, side * 0.06, side * 0.94, side * 0.94), fill=255)
    elif shape == "triangle":
        draw.polygon(((side / 2, 0), (last, last), (0, last)), fill=255)
    elif shape == "diamond":
        draw.polygon(((side / 2, 0), (last, side / 2), (side / 2, last), (0, side / 2)), fill=255)
    elif shape == "cross":
        draw.rectangle((side * 0.34, 0, side * 0.66, last), fill=255)
        draw.rectangle((0, side * 0.34, last, side * 0.66), fill=255)
    elif shape == "star":
        draw.polygon(star_points(side / 2, side / 2), fill=255)
    elif shape == "heart":
        draw.polygon(heart_points(side), fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}")
    return mask.resize((size, size), Image.Resampling.BOX)


def draw_shape(picture: Image.Image, shape: str, color: Color, left: int, top: int, size: int) -> None:
    """Put one shape into the picture with its bounding square at (left, top)."""
    picture.paste(color, (left, top), shape_mask(shape, size))


def shade(rng: random.Random, name: str) -> Color:
    """A named color with a little variation that never makes it another name's color."""
    red, green, blue = COLORS[name]
    return tuple(min(255, max(0, channel + rng.randint(-12, 12))) for channel in (red, green, blue))


def pale_color(rng: random.Random) -> Color:
    """A background close to white, so that every named color stands out against it."""
    base = rng.randint(232, 255)
    return tuple(min(255, base + rng.randint(-6, 6)) for _ in range(3))


def fit_font(rng: random.Random, text: str, style: TextStyle, width: int) -> ImageFont.FreeTypeFont:
    """A random font of the style at a random size, made smaller until the text fits the width."""
    name = rng.choice(FONT_FILES[: style.fonts])
    size = rng.randint(*style.sizes)
    while size > 8 and load_font(name, size).getlength(text) > width:
        size -= 1
    return load_font(name, size)


def draw_text(picture: Image.Image, rng: random.Random, text: str, area: Box, style: TextStyle, color: Color) -> None:
    """Print the text somewhere inside the area."""
    left, top, right, bottom = area
    font = fit_font(rng, text, style, right - left - 2)
    ink_left, ink_top, ink_right, ink_bottom = font.getbbox(text)
    free_width = max(0.0, right - left - (ink_right - ink_left) - 1)
    free_height = max(0.0, bottom - top - (ink_bottom - ink_top) - 1)
    x = left + int(free_width * style.spread * rng.random())
    y = top + int(free_height * style.spread * rng.random())
    ImageDraw.Draw(picture).text((x - ink_left, y - ink_top), text, font=font, fill=color)
