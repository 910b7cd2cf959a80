"""Scenes of one 112-pixel picture: printed text, single shapes, several shapes, things to count."""

from __future__ import annotations

import random

from PIL import Image

from render import TextStyle, draw_shape, draw_text, pale_color, shade, text_style
from sample import PLACE_PHRASES, Level, Turn, ask
from vocabulary import CHINESE_COLORS, CHINESE_SHAPES, COLORS, PLACES, SHAPES, WORDS, plural

SIDE = 112
PATCH = 14
TEXT_COLORS: tuple[str, ...] = ("black", "red", "green", "blue", "purple", "brown")
# First patch of an object by its size in patches, for the left, middle and right third (same downwards).
STARTS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((0, 1), (3,), (5, 6)),
    3: ((0,), (2, 3), (5,)),
    4: ((0,), (2,), (4,)),
}

Scene = tuple[Image.Image, list[Turn]]


def blank(rng: random.Random, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """An empty picture with a pale background."""
    return Image.new("RGB", (width, height), pale_color(rng))


def random_number(rng: random.Random, fewest: int, most: int) -> str:
    """A number with a count of digits from the range, each length equally often."""
    length = rng.randint(fewest, most)
    return str(rng.randint(10 ** (length - 1) if length > 1 else 0, 10**length - 1))


def any_style(rng: random.Random, level: Level) -> TextStyle:
    """A style of a difficulty drawn from the level's range."""
    return text_style(rng.uniform(*level.difficulty))


def letter_scene(rng: random.Random, level: Level) -> Scene:
    """One letter or digit, the easiest thing to read; only for training."""
    picture = blank(rng)
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz0123456789")
    color = rng.choice(TEXT_COLORS)
    draw_text(picture, rng, letter, (0, 0, SIDE, SIDE), any_style(rng, level), shade(rng, color))
    wording = "digit" if letter.isdigit() else "letter"
    color_turn = ask(rng, "color", "text color", color, "color", thing=wording)
    return picture, [ask(rng, "letter", wording, letter, "letter"), color_turn]


def word_turns(rng: random.Random, word: str, color: str) -> list[Turn]:
    """All questions about a printed word."""
    return [
        ask(rng, "word", "word", word, "word"),
        ask(rng, "spell", "spell", " ".join(word), "word"),
        ask(rng, "color", "text color", color, "word color", thing="word"),
        ask(rng, "chinese", "chinese word", word, "word"),
    ]


def number_turns(rng: random.Random, number: str, color: str) -> list[Turn]:
    """All questions about a printed number."""
    return [
        ask(rng, "number", "number", number, "number"),
        ask(rng, "color", "text color", color, "number color", thing="number"),
        ask(rng, "chinese", "chinese number", number, "number"),
    ]


def print_word(picture: Image.Image, rng: random.Random, level: Level, area: tuple[int, int, int, int]) -> list[Turn]:
    """Print a random word into the area and return the questions about it."""
    word, color = rng.choice(WORDS), rng.choice(TEXT_COLORS)
    draw_text(picture, rng, word, area, any_style(rng, level), shade(rng, color))
    return word_turns(rng, word, color)


def print_number(picture: Image.Image, rng: random.Random, level: Level, area: tuple[int, int, int, int]) -> list[Turn]:
    """Print a random number into the area and return the questions about it."""
    number, color = random_number(rng, 1, level.digits), rng.choice(TEXT_COLORS)
    draw_text(picture, rng, number, area, any_style(rng, level), shade(rng, color))
    return number_turns(rng, number, color)


def text_scene(rng: random.Random, level: Level, content: str) -> Scene:
    """A word or a number; half of the time one of the two in each half of the picture."""
    picture = blank(rng)
    if rng.random() < 0.5:
        middle = SIDE // 2
        areas = [(0, 0, SIDE, middle), (0, middle, SIDE, SIDE)]
        rng.shuffle(areas)
        turns = print_word(picture, rng, level, areas[0])
        return picture, turns + print_number(picture, rng, level, areas[1])
    printer = print_word if content == "word" else print_number
    return picture, printer(picture, rng, level, (0, 0, SIDE, SIDE))


def place_object(rng: random.Random, place: str, size: int) -> tuple[int, int]:
    """The first column and row, in patches, of an object in one of the nine places."""
    row, column = divmod(PLACES.index(place), 3)
    return rng.choice(STARTS[size][column]), rng.choice(STARTS[size][row])


def box_answer(name: str, column: int, row: int, size: int) -> str:
    """The answer format for boxes, in thousandths of the picture's width and height."""
    corners = [1000 * edge * PATCH // SIDE for edge in (column, row, column + size, row + size)]
    return f"<ref>{name}</ref><box>[[{','.join(map(str, corners))}]]</box>"


def one_object_scene(rng: random.Random, level: Level) -> Scene:
    """A single shape."""
    picture = blank(rng)
    shape, color, place, size = rng.choice(SHAPES), rng.choice(list(COLORS)), rng.choice(PLACES), rng.randint(2, 4)
    column, row = place_object(rng, place, size)
    draw_shape(picture, shape, shade(rng, color), column * PATCH, row * PATCH, size * PATCH)
    name = f"{color} {shape}"
    return picture, [
        ask(rng, "color", "one color", color, "color"),
        ask(rng, "shape", "one shape", shape, "shape"),
        ask(rng, "position", "where", place, "place", ("box", "shape"), name=shape),
        ask(rng, "position", "where", place, "place", ("box", "shape", "color"), name=name),
        ask(rng, "box", "box", box_answer(name, column, row, size), "box", ("place", "shape", "color"), name=name),
        ask(rng, "chinese", "chinese color", CHINESE_COLORS[color], "color"),
        ask(rng, "chinese", "chinese shape", CHINESE_SHAPES[shape], "shape"),
    ]


def many_objects_scene(rng: random.Random, level: Level) -> Scene:
    """Two or three shapes that differ in shape, color and place."""
    picture, turns = blank(rng), []
    number = rng.randint(2, 3)
    places, colors = rng.sample(PLACES, number), rng.sample(list(COLORS), number)
    for shape, color, place in zip(rng.sample(SHAPES, number), colors, places, strict=True):
        column, row = place_object(rng, place, 2)
        draw_shape(picture, shape, shade(rng, color), column * PATCH, row * PATCH, 2 * PATCH)
        name, box = f"{color} {shape}", box_answer(f"{color} {shape}", column, row, 2)
        turns += [
            ask(rng, "color", "color", color, name, shape=shape),
            ask(rng, "shape", "shape", shape, name, color=color),
            ask(rng, "position", "where", place, place, name=shape),
            ask(rng, "position", "where", place, place, (name,), name=name),
            ask(rng, "position", "what at", name, place, (name,), place=PLACE_PHRASES[place]),
            ask(rng, "box", "box", box, place, (name,), name=name),
        ]
    return picture, turns


def scatter(picture: Image.Image, rng: random.Random, sorts: list[tuple[str, str, int]]) -> None:
    """Draw sorts of (shape, color, how many) into random cells of a four by four grid."""
    cells = rng.sample(range(16), sum(number for _, _, number in sorts))
    for shape, color, number in sorts:
        tint, size = shade(rng, color), rng.randint(19, 24)
        for _ in range(number):
            row, column = divmod(cells.pop(), 4)
            left, top = (28 * cell + rng.randint(0, 28 - size) for cell in (column, row))
            draw_shape(picture, shape, tint, left, top, size)


def count_scene(rng: random.Random, level: Level) -> Scene:
    """One to nine things of one sort, or of two sorts that differ in shape and color."""
    picture = blank(rng)
    (shape, other), (color, second) = rng.sample(SHAPES, 2), rng.sample(list(COLORS), 2)
    number = rng.randint(1, 9)
    if rng.random() < 0.75 or number == 9:
        scatter(picture, rng, [(shape, color, number)])
        return picture, [
            ask(rng, "count", "count", str(number), "number", things="shapes"),
            ask(rng, "count", "count", str(number), "number", ("pair",), things=plural(shape)),
            ask(rng, "chinese", "chinese count", str(number), "number", ("pair",), shape=CHINESE_SHAPES[shape]),
            ask(rng, "color", "colors", color, "color", things="shapes"),
            ask(rng, "shape", "shape", shape, "pair", ("color",), color=color),
        ]
    rest = rng.randint(1, 9 - number)
    scatter(picture, rng, [(shape, color, number), (other, second, rest)])
    return picture, [
        ask(rng, "count", "count", str(number), "first number", things=plural(shape)),
        ask(rng, "count", "count", str(rest), "second number", ("second pair",), things=f"{second} {plural(other)}"),
        ask(rng, "count", "count", str(number + rest), "total", things="shapes"),
        ask(rng, "color", "colors", color, "first pair", things=plural(shape)),
        ask(rng, "shape", "shape", other, "second pair", color=second),
    ]
