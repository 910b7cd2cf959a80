"""Questions: what is left out with pictures, and what makes two of them the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from tilewise.evals.question import Question, keep_markers
from tilewise.inputs.pieces import Message
from tilewise.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0)
RED, BLUE = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")


@pytest.mark.parametrize(
    ("text", "count", "kept"),
    [
        ("<image>a<image>b<image>", 2, "<image>a<image>b"),
        ("<image>a", 0, "a"),
        ("no marker", 1, "no marker"),
        ("<image><image>", 5, "<image><image>"),
    ],
)
def test_the_first_markers_stay(text, count, kept):
    assert keep_markers(text, count) == kept


def test_markers_are_counted_through_a_conversation():
    turns = (
        Message("user", "<image>A<image>B", 2),
        Message("assistant", "say <image>"),
        Message("user", "<image>C", 1),
    )
    kept = keep_markers(turns, 2)
    assert kept == (*turns[:2], Message("user", "C", 0))


def test_pictures_beyond_the_limit_go_with_their_markers():
    question = Question("t", 0, "<image> and <image>?", GREEDY, (RED, BLUE))
    fewer, left_out = question.with_at_most(1)
    assert (fewer.prompt, fewer.pictures, left_out) == ("<image> and ?", (RED,), 1)
    assert question.with_at_most(2) == (question, 0)


def test_pictures_without_a_marker_stand_in_the_last_turn_of_the_user():
    turns = (Message("user", "first"), Message("assistant", "x"), Message("user", "second"))
    asked = Question("t", 0, turns, GREEDY).about((RED, BLUE))
    assert [turn.images for turn in asked.prompt] == [0, 0, 2]


def test_a_conversation_with_markers_stays():
    turns = (Message("user", "<image>what?", 1),)
    assert Question("t", 0, turns, GREEDY).about((RED,)).prompt == turns


def test_the_same_question_of_another_task_is_the_same():
    question = Question("t", 0, "what?", GREEDY, (RED,))
    assert replace(question, task="u", row=7).key() == question.key()
    assert replace(question, pictures=(RED.copy(),)).key() == question.key()


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "What?"},
        {"pictures": (BLUE,)},
        {"pictures": (RED, RED)},
        {"pictures": (RED.resize((10, 20)),)},
        {"sampling": SamplingParams(temperature=0, max_tokens=3)},
        {"scored": 1},
        {"thinking": True},
        {"prompt": (Message("user", "what?"),)},
    ],
)
def test_whatever_changes_the_answer_changes_the_key(changes):
    question = Question("t", 0, "what?", GREEDY, (RED,))
    assert replace(question, **changes).key() != question.key()


def test_a_palette_counts():
    first, second = (Image.new("P", (8, 8)) for _ in range(2))
    first.putpalette([255, 0, 0])
    second.putpalette([0, 255, 0])
    question = Question("t", 0, "what?", GREEDY, (first,))
    assert replace(question, pictures=(second,)).key() != question.key()
