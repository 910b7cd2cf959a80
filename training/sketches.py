"""Sketches as people draw them in the web chat: a thick brush on a white square of 448 pixels.

A thing is a list of strokes, each a line of points in a unit square. Before it is drawn it is turned and squeezed a
little, its points wander, and its ends do not quite meet, since nobody's hand is steady.
"""

from __future__ import annotations

import itertools
import math
import random

from PIL import Image, ImageDraw

from render import Color, heart_points, shade, star_points
from sample import QUESTIONS, Turn
from vocabulary import PLACES, SHAPES, plural

CANVAS = 448  # the sketch pad of src/tilewise/ui
BRUSH = (9, 30)  # pixels; the pad begins with 14
BRUSH_COLORS: tuple[str, ...] = ("black", "black", "red", "green", "blue", "yellow", "orange", "purple", "brown")

# Wordings that need no new tokens are kept apart from QUESTIONS, of which the tokenizer was made.
WORDINGS: dict[str, tuple[str, ...]] = {
    "shape": (*QUESTIONS["one shape"], "What is this?", "What did I draw?", "What do you see?"),
    "digit": (*QUESTIONS["digit"], "What number is this?", "What is this?", "What did I draw?", "What do you see?"),
    "number": (*QUESTIONS["number"], "What number is this?", "What did I draw?"),
    "color": (*QUESTIONS["one color"], "What color is it?"),
    "count": QUESTIONS["count"],
}

Point = tuple[float, float]
Stroke = list[Point]


def arc(center: Point, radii: Point, first: float, last: float) -> Stroke:
    """Points of an ellipse from one angle to another, in degrees; 0 is right, 90 is down."""
    count = max(6, int(abs(last - first) / 12))
    angles = (math.radians(first + (last - first) * step / count) for step in range(count + 1))
    return [(center[0] + radii[0] * math.cos(angle), center[1] + radii[1] * math.sin(angle)) for angle in angles]


def line(*corners: Point) -> Stroke:
    """Points along straight lines from corner to corner."""
    points = [corners[0]]
    for (x, y), (to_x, to_y) in itertools.pairwise(corners):
        points += [(x + (to_x - x) * step / 6, y + (to_y - y) * step / 6) for step in range(1, 7)]
    return points


def outline(rng: random.Random, shape: str) -> list[Stroke]:
    """The strokes of a shape, beginning anywhere that a hand would begin."""
    start = rng.uniform(0, 360)
    if shape == "circle":
        return [arc((0.5, 0.5), (0.5, 0.5), start, start + rng.uniform(350, 385))]
    if shape == "ring":
        inner = rng.uniform(0.2, 0.3)
        return [arc((0.5, 0.5), (reach, reach), start, start + 365) for reach in (0.5, inner)]
    if shape == "square":
        return [line((0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95), (0.05, 0.03))]
    if shape == "triangle":
        return [line((0.5, 0), (1, 0.95), (0, 0.95), (0.5, 0))]
    if shape == "diamond":
        return [line((0.5, 0), (0.95, 0.5), (0.5, 1), (0.05, 0.5), (0.5, 0))]
    if shape == "cross":
        return [line((0.5, 0), (0.5, 1)), line((0, 0.5), (1, 0.5))]
    if shape == "heart":
        points = heart_points(1.0)
        return [line(*points[::2], points[0])]
    corners = star_points(0.5, 0.5)
    if rng.random() < 0.5:  # in one go, through the middle
        tips = corners[::2]
        return [line(*(tips[number * 2 % 5] for number in range(6)))]
    return [line(*corners, corners[0])]


def digit(rng: random.Random, value: int) -> list[Stroke]:
    """The strokes of a digit, one of the ways in which people write it."""
    ways: dict[int, list[list[Stroke]]] = {
        0: [[arc((0.5, 0.5), (0.36, 0.5), -90, 275)]],
        1: [[line((0.5, 0), (0.5, 1))], [line((0.25, 0.25), (0.52, 0), (0.52, 1))],
            [line((0.28, 0.22), (0.52, 0), (0.52, 1)), line((0.25, 1), (0.78, 1))]],
        2: [[[*arc((0.5, 0.28), (0.36, 0.28), -170, 30), *line((0.8, 0.42), (0.14, 1), (0.88, 1))]]],
        3: [[[*arc((0.45, 0.26), (0.36, 0.26), -150, 90), *arc((0.45, 0.74), (0.4, 0.26), -90, 150)]]],
        4: [[line((0.6, 0), (0.1, 0.62), (0.92, 0.62)), line((0.66, 0.3), (0.66, 1))],
            [line((0.18, 0), (0.16, 0.52), (0.88, 0.52)), line((0.7, 0), (0.7, 1))]],
        5: [[[*line((0.82, 0), (0.22, 0), (0.2, 0.45)), *arc((0.46, 0.68), (0.38, 0.31), -120, 150)]],
            [[*line((0.25, 0), (0.2, 0.45)), *arc((0.46, 0.68), (0.38, 0.31), -120, 150)], line((0.22, 0), (0.85, 0))]],
        6: [[[*arc((0.85, 0.68), (0.7, 0.68), -90, -180), *arc((0.5, 0.7), (0.35, 0.3), -180, 190)]]],
        7: [[line((0.12, 0), (0.88, 0), (0.4, 1))],
            [line((0.12, 0), (0.88, 0), (0.4, 1)), line((0.35, 0.5), (0.85, 0.5))]],
        8: [[arc((0.5, 0.26), (0.3, 0.26), 90, 450), arc((0.5, 0.75), (0.36, 0.25), -90, 275)]],
        9: [[[*arc((0.48, 0.3), (0.33, 0.3), 0, -360), *line((0.81, 0.3), (0.74, 1))]],
            [[*arc((0.48, 0.3), (0.33, 0.3), 0, -360), *arc((0.4, 0.55), (0.41, 0.45), -20, 110)]]],
    }  # fmt: skip
    return rng.choice(ways[value])


def by_hand(rng: random.Random, strokes: list[Stroke], width: float, height: float) -> list[Stroke]:
    """The strokes in pixels from (0, 0), turned, slanted and unsteady."""
    angle, slant = math.radians(rng.gauss(0, 6)), rng.gauss(0, 0.08)
    shake = 0.012 * rng.random() * (width + height) / 2
    drawn = []
    for stroke in strokes:
        drift, points = [rng.gauss(0, 0.015), rng.gauss(0, 0.015)], []
        for x, y in stroke:
            x, y = x - 0.5 + slant * (0.5 - y) + drift[0], y - 0.5 + drift[1]
            turned = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
            points.append(
                tuple(side * (0.5 + at) + rng.gauss(0, shake) for side, at in zip((width, height), turned, strict=True))
            )
        drawn.append(points)
    return drawn


def brush(
    picture: Image.Image, strokes: list[Stroke], place: Point, color: Color, width: int, filled: bool = False
) -> None:
    """Draw strokes with a round brush, the top left corner of their square at the place."""
    draw = ImageDraw.Draw(picture)
    for stroke in strokes:
        points = [(x + place[0], y + place[1]) for x, y in stroke]
        if filled:
            draw.polygon(points, fill=color)
        draw.line(points, fill=color, width=width, joint="curve")
        for x, y in points:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=color)


def sketch(rng: random.Random, picture: Image.Image, shape: str, color: Color, place: Point, size: float) -> None:
    """Draw a shape by hand, sometimes filled, the top left corner of its square at the place."""
    width = min(rng.randint(*BRUSH), int(size / 6))
    filled = shape not in ("cross", "ring") and rng.random() < 0.25
    stretch = rng.uniform(0.85, 1.15)
    strokes = by_hand(rng, outline(rng, shape), size * min(1, stretch), size / max(1, stretch))
    brush(picture, strokes, place, color, width, filled)


def ask_of(rng: random.Random, wording: str, answer: str, fact: str, given: tuple[str, ...] = (), **names: str) -> Turn:
    return Turn("sketch", rng.choice(WORDINGS[wording]).format(**names), answer, fact, given)


def paper(rng: random.Random) -> Image.Image:
    return Image.new("RGB", (CANVAS, CANVAS), (255, 255, 255) if rng.random() < 0.8 else (rng.randint(240, 255),) * 3)


def shape_sketch(rng: random.Random) -> tuple[Image.Image, list[Turn]]:
    """One shape, anywhere."""
    picture, shape, color = paper(rng), rng.choice(SHAPES), rng.choice(BRUSH_COLORS)
    size = rng.uniform(90, 390)
    place = (rng.uniform(15, CANVAS - 15 - size), rng.uniform(15, CANVAS - 15 - size))
    sketch(rng, picture, shape, shade(rng, color), place, size)
    return picture, [
        ask_of(rng, "shape", shape, "shape"),
        ask_of(rng, "color", color, "color"),
        ask_of(rng, "count", "1", "number", things="shapes"),
    ]


def digit_sketch(rng: random.Random) -> tuple[Image.Image, list[Turn]]:
    """A digit, or a number of two."""
    picture, color = paper(rng), rng.choice(BRUSH_COLORS)
    value = str(rng.randint(0, 9) if rng.random() < 0.7 else rng.randint(10, 99))
    height = rng.uniform(140, 390) if len(value) == 1 else rng.uniform(140, 280)
    step, tint, width = height * rng.uniform(0.6, 0.8), shade(rng, color), rng.randint(*BRUSH)
    left = rng.uniform(15, CANVAS - 15 - step * len(value))
    top = rng.uniform(15, CANVAS - 15 - height)
    for number, character in enumerate(value):
        strokes = by_hand(rng, digit(rng, int(character)), step * 0.85, height)
        brush(picture, strokes, (left + number * step, top + rng.gauss(0, 4)), tint, width)
    return picture, [
        ask_of(rng, "digit" if len(value) == 1 else "number", value, "number"),
        ask_of(rng, "color", color, "color"),
    ]


def count_sketch(rng: random.Random) -> tuple[Image.Image, list[Turn]]:
    """Up to seven shapes of a sort, none over another."""
    picture, shape, color, number = paper(rng), rng.choice(SHAPES), rng.choice(BRUSH_COLORS), rng.randint(2, 7)
    tint, cell = shade(rng, color), CANVAS / 3
    for place in rng.sample(range(len(PLACES)), number):
        size = rng.uniform(55, 120)
        row, column = divmod(place, 3)
        corner = (column * cell + rng.uniform(8, cell - 8 - size), row * cell + rng.uniform(8, cell - 8 - size))
        sketch(rng, picture, shape, tint, corner, size)
    return picture, [
        ask_of(rng, "count", str(number), "number", things=rng.choice(("shapes", plural(shape)))),
        ask_of(rng, "color", color, "color"),
        ask_of(rng, "shape", shape, "shape"),
    ]


def sketch_scene(rng: random.Random, side: int = CANVAS) -> tuple[Image.Image, list[Turn]]:
    """A sketch of any kind as a square of a side: 448 is cut into nine tiles and a thumbnail, 112 is one tile."""
    picture, turns = rng.choice((shape_sketch, shape_sketch, digit_sketch, digit_sketch, count_sketch))(rng)
    return picture if side == CANVAS else picture.resize((side, side), Image.Resampling.BICUBIC), turns
