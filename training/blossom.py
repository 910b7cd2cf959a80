"""A drawing of cherry blossoms before a tall tower and a blue sky, made by code alone."""

from __future__ import annotations

import math
import random

import numpy
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 768, 1024
# Everything is drawn this many times larger and shrunk for smooth edges.
SCALE = 2
Point = tuple[float, float]
Color = tuple[int, int, int]
PINKS: tuple[Color, ...] = ((252, 205, 220), (250, 188, 209), (254, 222, 232), (245, 170, 196))


def sky() -> Image.Image:
    """A blue sky that grows paler towards the horizon."""
    top, bottom = numpy.array((58, 128, 205)), numpy.array((186, 217, 240))
    share = numpy.linspace(0, 1, HEIGHT * SCALE)[:, None] ** 0.9
    rows = (top + (bottom - top) * share).astype(numpy.uint8)
    return Image.fromarray(numpy.repeat(rows[:, None, :], WIDTH * SCALE, axis=1))


def tower_half_width(part: float) -> float:
    """Half the tower's width at a height from 0 (ground) to 1 (mast's foot)."""
    return 64 * (1 - part) ** 1.6 + 17


def draw_tower(picture: Image.Image) -> None:
    """A slender steel tower with a lattice, two round decks and a mast."""
    draw = ImageDraw.Draw(picture)
    middle, ground, top = 400 * SCALE, 1030 * SCALE, 250 * SCALE
    steel, shadow, light = (196, 207, 219), (150, 166, 184), (228, 235, 242)

    def at(part: float, side: float) -> Point:
        return middle + side * tower_half_width(part) * SCALE, ground + (top - ground) * part

    outline = [at(step / 40, -1) for step in range(41)] + [at(step / 40, 1) for step in range(40, -1, -1)]
    draw.polygon(outline, fill=steel)
    draw.polygon([at(step / 40, 0.35) for step in range(41)] + outline[41:], fill=shadow)
    for step in range(40):
        low, high = step / 40, (step + 1) / 40
        draw.line([at(low, -1), at(high, 1)], fill=light, width=2 * SCALE)
        draw.line([at(low, 1), at(high, -1)], fill=shadow, width=2 * SCALE)
        draw.line([at(low, -1), at(low, 1)], fill=light, width=SCALE)
    for y, half, height in ((470, 46, 44), (330, 33, 26)):
        draw_deck(draw, middle, y * SCALE, half * SCALE, height * SCALE)
    draw.rectangle((middle - 9 * SCALE, 150 * SCALE, middle + 9 * SCALE, top), fill=steel)
    draw.rectangle((middle - 5 * SCALE, 70 * SCALE, middle + 5 * SCALE, 150 * SCALE), fill=light)
    draw.line([(middle, 30 * SCALE), (middle, 80 * SCALE)], fill=shadow, width=3 * SCALE)


def draw_deck(draw: ImageDraw.ImageDraw, middle: float, y: float, half: float, height: float) -> None:
    """An observation deck: a bowl with a band of windows."""
    bowl = [
        (middle - half, y),
        (middle + half, y),
        (middle + half * 0.55, y + height),
        (middle - half * 0.55, y + height),
    ]
    draw.polygon(bowl, fill=(205, 214, 224))
    draw.rectangle((middle - half, y - height * 0.45, middle + half, y), fill=(86, 112, 140))
    draw.rectangle(
        (middle - half * 1.05, y - height * 0.6, middle + half * 1.05, y - height * 0.4), fill=(236, 240, 245)
    )


def grow_branch(draw: ImageDraw.ImageDraw, rng: random.Random, start: Point, angle: float, width: float) -> list[Point]:
    """Draw a crooked branch with twigs and return places for blossoms along it."""
    places: list[Point] = []
    x, y = start
    while width > 2.5 * SCALE:
        angle += rng.uniform(-0.28, 0.28)
        end = (x + math.cos(angle) * 34 * SCALE, y + math.sin(angle) * 34 * SCALE)
        draw.line([(x, y), end], fill=(82, 58, 52), width=int(width))
        draw.ellipse(
            (end[0] - width / 2, end[1] - width / 2, end[0] + width / 2, end[1] + width / 2), fill=(82, 58, 52)
        )
        places.append(end)
        if rng.random() < 0.5:
            turn = rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
            places += grow_branch(draw, rng, end, angle + turn, width * 0.55)
        x, y = end
        width *= 0.88
    return places


def draw_blossom(draw: ImageDraw.ImageDraw, rng: random.Random, center: Point, radius: float) -> None:
    """Five petals around a darker middle with a few stamens."""
    color, turn = rng.choice(PINKS), rng.uniform(0, math.tau)
    flattening = rng.uniform(0.75, 1.0)
    for petal in range(5):
        angle = turn + petal * math.tau / 5
        x = center[0] + math.cos(angle) * radius * 0.55
        y = center[1] + math.sin(angle) * radius * 0.55 * flattening
        size = radius * 0.5
        tint = tuple(max(0, channel - rng.randint(0, 14)) for channel in color)
        draw.ellipse((x - size, y - size * flattening, x + size, y + size * flattening), fill=tint)
    size = radius * 0.2
    draw.circle(center, size, fill=(226, 110, 150))
    for _ in range(5):
        angle, reach = rng.uniform(0, math.tau), radius * 0.36
        x, y = center[0] + math.cos(angle) * reach, center[1] + math.sin(angle) * reach
        draw.circle((x, y), SCALE, fill=(250, 226, 140))


def draw_blossoms(picture: Image.Image, rng: random.Random, places: list[Point], radius: float, number: int) -> None:
    """Clusters of blossoms around the given places."""
    draw = ImageDraw.Draw(picture)
    for place in places:
        for _ in range(number):
            center = tuple(value + rng.gauss(0, 15 * SCALE) for value in place)
            draw_blossom(draw, rng, center, radius * rng.uniform(0.8, 1.2) * SCALE)


def cherry_blossom_picture() -> Image.Image:
    """The whole drawing."""
    rng = random.Random(5)
    picture = sky()
    draw_tower(picture)
    picture = picture.filter(ImageFilter.GaussianBlur(2 * SCALE))
    starts = (
        ((-20, 240), 0.25, 15),
        ((790, 120), 2.75, 16),
        ((-20, 800), -0.35, 17),
        ((790, 760), 3.55, 16),
        ((790, 1000), 3.7, 13),
        ((60, -20), 1.0, 11),
    )
    places: list[Point] = []
    draw = ImageDraw.Draw(picture)
    for (x, y), angle, width in starts:
        places += grow_branch(draw, rng, (x * SCALE, y * SCALE), angle, width * SCALE)
    draw_blossoms(picture, rng, places, 13, 4)
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
