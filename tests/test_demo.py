"""The shipped model on the shipped pictures: a trained model's right answers, through the whole of Tilewise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tilewise
from tilewise import LLM, SamplingParams
from tilewise.cli.ask import answer_turns, user_message

DEMO = Path(tilewise.__file__).parent / "demo"
ITEMS = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def llm():
    return LLM()


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item["task"])
def test_every_question_of_the_demo_is_answered_right(llm, item):
    assert [answer for _, answer, _ in answer_turns(llm, item)] == [turn["answer"] for turn in item["turns"]]


def test_small_print_needs_tiles(llm):
    item = next(item for item in ITEMS if item["task"] == "small_print")
    message = user_message(item["turns"][0]["question"], [DEMO / "pictures" / name for name in item["pictures"]])
    greedy = SamplingParams(temperature=0, max_tokens=32)
    answers = [
        llm.chat([message], greedy, mm_processor_kwargs={"max_dynamic_patch": tiles})[0].outputs[0].text
        for tiles in (12, 1)
    ]
    assert answers[0] == item["turns"][0]["answer"] != answers[1]


def test_the_demo_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 24 * 2**20
