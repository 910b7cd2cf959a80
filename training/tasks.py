"""Samples by task: which scenes can ask for a task, two-picture scenes and pictures with small print."""

from __future__ import annotations

import random
from collections.abc import Callable

from render import TextStyle, draw_shape, draw_text, shade
from sample import PLACE_PHRASES, Level, Sample, Turn, ask, conversation
from scenes import (
    SIDE,
    TEXT_COLORS,
    Scene,
    any_style,
    blank,
    count_scene,
    letter_scene,
    many_objects_scene,
    one_object_scene,
    random_number,
    scatter,
    text_scene,
)
from sketches import sketch_scene
from vocabulary import COLORS, SHAPES, WORDS, plural

SMALL_PRINT = TextStyle(sizes=(18, 20))
# Tiles of a small-print picture (columns, rows) and the named places as (column, row) of a tile.
LARGE_GRID, MEDIUM_GRID = (4, 3), (3, 2)

# Accuracy is measured on these; the other tasks only help training.
MEASURED_TASKS: tuple[str, ...] = (
    "word",
    "number",
    "color",
    "shape",
    "count",
    "position",
    "compare",
    "small_print",
    "chinese",
    "box",
    "sketch",
)


def compare_counts(rng: random.Random, level: Level) -> tuple[list, list[Turn]]:
    """Two pictures with different numbers of the same shape."""
    shape, colors, numbers = rng.choice(SHAPES), rng.sample(list(COLORS), 2), rng.sample(range(1, 10), 2)
    pictures = [blank(rng), blank(rng)]
    for picture, color, number in zip(pictures, colors, numbers, strict=True):
        scatter(picture, rng, [(shape, color, number)])
    winner = 1 if numbers[0] > numbers[1] else 2
    asked = rng.randint(1, 2)
    return pictures, [
        ask(rng, "compare", "more", f"Image-{winner}", "more", things=plural(shape)),
        ask(rng, "compare", "count in", str(numbers[asked - 1]), f"number {asked}", things=plural(shape), number=asked),
        ask(rng, "compare", "color in", colors[2 - asked], f"color {3 - asked}", number=3 - asked),
    ]


def compare_texts(rng: random.Random, level: Level) -> tuple[list, list[Turn]]:
    """Two pictures with a word or a number each."""
    numeric = rng.random() < 0.5
    if numeric:
        texts = [str(number) for number in rng.sample(range(100), 2)]
        winner = 1 if int(texts[0]) > int(texts[1]) else 2
        turns = [ask(rng, "compare", "larger", f"Image-{winner}", "larger")]
    else:
        texts = [rng.choice(WORDS)] * 2 if rng.random() < 0.5 else rng.sample(WORDS, 2)
        turns = [ask(rng, "compare", "same word", "Yes" if texts[0] == texts[1] else "No", "same word")]
    pictures = [blank(rng), blank(rng)]
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True), start=1):
        color = shade(rng, rng.choice(TEXT_COLORS))
        draw_text(picture, rng, text, (0, 0, SIDE, SIDE), any_style(rng, level), color)
        turns.append(ask(rng, "compare", "number in" if numeric else "word in", text, f"text {number}", number=number))
    return pictures, turns


def compare_objects(rng: random.Random, level: Level) -> tuple[list, list[Turn]]:
    """Two pictures with one shape each, which may share shape or color."""
    shapes = [rng.choice(SHAPES)] * 2 if rng.random() < 0.5 else rng.sample(SHAPES, 2)
    colors = [rng.choice(list(COLORS))] * 2 if rng.random() < 0.5 else rng.sample(list(COLORS), 2)
    pictures = [blank(rng), blank(rng)]
    for picture, shape, color in zip(pictures, shapes, colors, strict=True):
        size = rng.randint(28, 56)
        left, top = rng.randint(0, SIDE - size), rng.randint(0, SIDE - size)
        draw_shape(picture, shape, shade(rng, color), left, top, size)
    asked = rng.randint(1, 2)
    return pictures, [
        ask(rng, "compare", "same color", "Yes" if colors[0] == colors[1] else "No", "same color"),
        ask(rng, "compare", "same shape", "Yes" if shapes[0] == shapes[1] else "No", "same shape"),
        ask(rng, "compare", "color in", colors[asked - 1], f"color {asked}", number=asked),
        ask(rng, "compare", "shape in", shapes[2 - asked], f"shape {3 - asked}", number=3 - asked),
    ]


def compare_scene(rng: random.Random, level: Level) -> tuple[list, list[Turn]]:
    """Two pictures in one prompt."""
    return rng.choice((compare_counts, compare_texts, compare_objects))(rng, level)


def edge_places(grid: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """The named tiles at the left and right edge of a grid."""
    last_column, last_row = grid[0] - 1, grid[1] - 1
    places = {
        "top left": (0, 0),
        "top right": (last_column, 0),
        "bottom left": (0, last_row),
        "bottom right": (last_column, last_row),
    }
    if last_row == 2:
        places |= {"left": (0, 1), "right": (last_column, 1)}
    return places


def small_print_scene(rng: random.Random, grid: tuple[int, int]) -> Scene:
    """A picture of several tiles with a large shape in the middle and small print in one of the edge tiles.

    The text lies inside its tile and is far too small to read in the thumbnail.
    """
    picture = blank(rng, SIDE * grid[0], SIDE * grid[1])
    shape, color = rng.choice(SHAPES), rng.choice(list(COLORS))
    size = rng.randint(SIDE - 30, SIDE * (grid[0] - 2))
    left = SIDE + rng.randint(0, SIDE * (grid[0] - 2) - size)
    draw_shape(picture, shape, shade(rng, color), left, rng.randint(0, SIDE * grid[1] - size), size)
    text = rng.choice(WORDS) if rng.random() < 0.5 else random_number(rng, 2, 3)
    place, (column, row) = rng.choice(list(edge_places(grid).items()))
    area = (column * SIDE + 2, row * SIDE + 2, (column + 1) * SIDE - 2, (row + 1) * SIDE - 2)
    draw_text(picture, rng, text, area, SMALL_PRINT, shade(rng, rng.choice(TEXT_COLORS)))
    return picture, [
        ask(rng, "small_print", "small", text, "text"),
        ask(rng, "small_print", "small at", text, "text", ("place",), place=PLACE_PHRASES[place]),
        ask(rng, "position", "where print", place, "place", ("text",), text=text),
        ask(rng, "color", "color", color, "shape", shape=shape),
        ask(rng, "shape", "shape", shape, "shape", color=color),
    ]


SINGLE_PICTURE_SCENES: dict[str, tuple[Callable[[random.Random, Level], Scene], ...]] = {
    "letter": (letter_scene,),
    "word": (lambda rng, level: text_scene(rng, level, "word"),),
    "spell": (lambda rng, level: text_scene(rng, level, "word"),),
    "number": (lambda rng, level: text_scene(rng, level, "number"),),
    "color": (one_object_scene, one_object_scene, many_objects_scene),
    "shape": (one_object_scene, one_object_scene, many_objects_scene),
    "position": (one_object_scene, many_objects_scene),
    "box": (one_object_scene, many_objects_scene),
    "count": (count_scene,),
    "chinese": (
        one_object_scene,
        one_object_scene,
        lambda rng, level: text_scene(rng, level, rng.choice(("word", "number"))),
        lambda rng, level: text_scene(rng, level, rng.choice(("word", "number"))),
        count_scene,
    ),
}


def make_sample(seed: int, index: int, task: str, level: Level) -> Sample:
    """Sample number index of a seed: the same arguments always give the same sample."""
    rng = random.Random(f"{seed}/{index}/{task}")
    if task == "compare":
        pictures, turns = compare_scene(rng, level)
    elif task in ("small_print", "small_print_medium"):
        picture, turns = small_print_scene(rng, LARGE_GRID if task == "small_print" else MEDIUM_GRID)
        pictures, task = [picture], "small_print"
    elif task in ("sketch", "sketch_small"):
        picture, turns = sketch_scene(rng) if task == "sketch" else sketch_scene(rng, SIDE)
        pictures, task = [picture], "sketch"
    else:
        turns = []
        while not any(turn.task == task for turn in turns):
            picture, turns = rng.choice(SINGLE_PICTURE_SCENES[task])(rng, level)
        pictures = [picture]
    return Sample(pictures, conversation(rng, task, turns))
