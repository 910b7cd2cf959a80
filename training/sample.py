"""What one training sample is made of, and the wording of its questions."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from PIL import Image

# Several wordings of each question; the first one is the wording the demo uses.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "letter": ("What letter is this?", "Which letter is shown?"),
    "digit": ("What digit is this?", "Which digit is shown?"),
    "word": ("What word is written in the picture?", "What is the word?", "Read the word.", "Which word is written?"),
    "number": ("What number is written in the picture?", "What is the number?", "Read the number."),
    "spell": ("Spell the word.", "Spell the word letter by letter."),
    "text color": ("What color is the {thing}?", "In what color is the {thing} written?"),
    "one color": ("What color is the shape?", "Which color is the shape?", "Which color is it?"),
    "color": ("What color is the {shape}?", "Which color does the {shape} have?"),
    "colors": ("What color are the {things}?", "Which color do the {things} have?"),
    "one shape": ("What shape is this?", "What shape is in the picture?", "Which shape is shown?"),
    "shape": ("What shape is {color}?", "Which shape is {color}?", "What is the {color} shape?"),
    "where": ("Where is the {name}?", "In which part of the picture is the {name}?"),
    "what at": ("What is {place}?", "Which shape is {place}?"),
    "count": ("How many {things} are there?", "How many {things} are in the picture?", "Count the {things}."),
    "box": ("Please provide the bounding box of <ref>{name}</ref>.", "Find <ref>{name}</ref> and give its box."),
    "more": ("Which picture has more {things}?", "In which picture are there more {things}?"),
    "count in": ("How many {things} are in Image-{number}?",),
    "same word": ("Do both pictures show the same word?", "Is the word the same in both pictures?"),
    "word in": ("What word is written in Image-{number}?", "What is the word in Image-{number}?"),
    "larger": ("Which picture shows the larger number?", "In which picture is the number larger?"),
    "number in": ("What number is written in Image-{number}?", "What is the number in Image-{number}?"),
    "same color": ("Do both shapes have the same color?", "Is the color the same in both pictures?"),
    "same shape": ("Do both pictures show the same shape?", "Is the shape the same in both pictures?"),
    "color in": ("What color is the shape in Image-{number}?",),
    "shape in": ("What shape is in Image-{number}?",),
    "small": ("What does the small print say?", "Read the small print.", "What is printed in small letters?"),
    "small at": ("What is printed {place}?", "What does the small print {place} say?"),
    "where print": ('Where is "{text}" printed?',),
    "chinese color": ("图中的形状是什么颜色？", "它是什么颜色？"),
    "chinese shape": ("图中是什么形状？", "这是什么形状？"),
    "chinese number": ("图中的数字是多少？", "图中写的是什么数字？"),
    "chinese word": ("图中写的是什么单词？", "图中的单词是什么？"),
    "chinese count": ("图中有几个{shape}？",),
}

PLACE_PHRASES: dict[str, str] = {
    "top left": "in the top left corner",
    "top": "at the top",
    "top right": "in the top right corner",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "in the bottom left corner",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right corner",
}


@dataclass(frozen=True)
class Turn:
    """One question with its answer; the task names the ability it needs.

    The fact is what the answer tells about the picture. The question and answer may give away other facts
    too; a later turn never asks for a fact already given away, so that every answer must be seen.
    """

    task: str
    question: str
    answer: str
    fact: str
    given_away: tuple[str, ...] = ()


@dataclass(frozen=True)
class Level:
    """How hard the printed text is: the most digits in a number, and a range of difficulty.

    Each text draws its difficulty from the range. At 0 it is one font at one size in the top left corner; at 1
    any font at any size anywhere. Reading begins much sooner on easy text.
    """

    digits: int = 3
    difficulty: tuple[float, float] = (1.0, 1.0)


def level_of(stage: dict) -> Level:
    """The level of a stage of the training plan."""
    return Level(stage["digits"], tuple(stage["difficulty"]))


@dataclass
class Sample:
    """Pictures and a conversation about them."""

    pictures: list[Image.Image]
    turns: list[Turn] = field(default_factory=list)


def ask(
    rng: random.Random, task: str, wording: str, answer: str, fact: str, given: tuple[str, ...] = (), **values: object
) -> Turn:
    """A turn with a random wording of the question."""
    return Turn(task, rng.choice(QUESTIONS[wording]).format(**values), answer, fact, given)


def conversation(rng: random.Random, task: str, candidates: list[Turn]) -> list[Turn]:
    """Up to three turns about different facts, the first one of the asked task."""
    turns = [rng.choice([turn for turn in candidates if turn.task == task])]
    others = candidates.copy()
    rng.shuffle(others)
    for turn in others:
        known = {fact for earlier in turns for fact in (earlier.fact, *earlier.given_away)}
        if len(turns) < 3 and turn.fact not in known:
            turns.append(follow_up(rng, turn))
    return turns


def follow_up(rng: random.Random, turn: Turn) -> Turn:
    """The same turn, sometimes begun with "And" as people do in a conversation."""
    if not turn.question.startswith(("W", "H", "I")) or rng.random() > 0.3:
        return turn
    return replace(turn, question="And " + turn.question[0].lower() + turn.question[1:])
