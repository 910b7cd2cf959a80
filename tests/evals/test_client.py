"""Questions to an engine: their order, the store, and those that cannot be asked."""

from __future__ import annotations

import itertools

import pytest
from PIL import Image

from tilewise import SamplingParams
from tilewise.assets import ImageAsset
from tilewise.evals.client import UNREADABLE, AnswerStore, EvalClient
from tilewise.evals.question import Question
from tilewise.inputs.pieces import Message

GREEDY = SamplingParams(temperature=0, max_tokens=8)


def ask(text: str, row: int, *pictures: Image.Image, sampling: SamplingParams = GREEDY) -> Question:
    return Question(
        "demo", row, (Message("user", "<image>\n" * len(pictures) + text, len(pictures)),), sampling, pictures
    )


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    word, shapes = (ImageAsset(name).pil_image for name in ("reading_text", "color_and_shape"))
    return [
        ask("What is the word?", 0, word),
        ask("Read the number.", 1, word),
        ask("What color is the circle?", 2, shapes),
    ]


def test_answers_come_in_the_order_of_the_questions(demo, questions):
    seen = []
    client = EvalClient(demo, batch_size=2, max_images=9)
    answers = client.ask(questions, lambda place, answer: seen.append((place, answer.text)))
    assert [answer.text for answer in answers] == ["cat", "388", "yellow"]
    assert sorted(seen) == [(0, "cat"), (1, "388"), (2, "yellow")]
    assert client.counts.completion_tokens == sum(len(answer.token_ids) for answer in answers)
    assert [question.row for question, _ in client.answers] == [0, 1, 2]


def test_what_is_in_the_store_is_not_computed_again(demo, questions, tmp_path):
    first = EvalClient(demo, 2, 9, AnswerStore(tmp_path, "m"))
    first.ask(questions[:2], lambda *_: None)
    second = EvalClient(demo, 2, 9, AnswerStore(tmp_path, "m"))
    answers = second.ask(questions, lambda *_: None)
    assert [answer.text for answer in answers] == ["cat", "388", "yellow"]
    assert second.counts.from_store == 2
    assert second.counts.completion_tokens == len(answers[2].token_ids)


def test_each_answer_is_kept_when_it_is_whole_and_not_at_the_end(demo, questions, tmp_path):
    """Whoever is killed at the second answer of one batch has the first."""

    class Killed(BaseException):
        pass

    def kill(count=itertools.count(1)):
        if next(count) == 2:
            raise Killed

    with pytest.raises(Killed):
        EvalClient(demo, 3, 9, AnswerStore(tmp_path, "m")).ask(questions, lambda *_: kill())
    again = EvalClient(demo, 3, 9, AnswerStore(tmp_path, "m"))
    assert [answer.text for answer in again.ask(questions, lambda *_: None)] == ["cat", "388", "yellow"]
    assert 1 <= again.counts.from_store <= 2


def test_a_question_that_cannot_be_asked_costs_itself_alone(demo, questions, tmp_path):
    unreadable = Image.new("RGB", (8, 8))
    unreadable.info[UNREADABLE] = "row 4 is a web page"
    bad = [
        ask("What?", 3, Image.new("1", (300_000, 1))),
        ask("What?", 4, unreadable),
        ask("long " * 3000, 5),
    ]
    client = EvalClient(demo, 9, 9, AnswerStore(tmp_path, "m"))
    answers = client.ask([bad[0], questions[0], *bad[1:]], lambda *_: None)
    assert [answer.text for answer in answers] == ["", "cat", "", ""]
    assert [line.partition(":")[0] for line in client.counts.failed] == ["demo, row 3", "demo, row 4", "demo, row 5"]
    assert "row 4 is a web page" in client.counts.failed[1]
    assert "context holds 2048" in client.counts.failed[2]
    again = EvalClient(demo, 9, 9, AnswerStore(tmp_path, "m"))
    again.ask(bad, lambda *_: None)
    assert again.counts.from_store == 0


def test_pictures_beyond_the_limit_are_counted(demo, questions):
    word, shapes = questions[0].pictures[0], questions[2].pictures[0]
    client = EvalClient(demo, 9, max_images=1)
    answers = client.ask([ask("What is the word?", 0, word, shapes, shapes)], lambda *_: None)
    assert client.counts.pictures_left_out == 2
    assert client.counts.failed == []
    assert answers[0].prompt_tokens < 60


def test_another_limit_of_pictures_is_another_question(demo, questions, tmp_path):
    word, shapes = questions[0].pictures[0], questions[2].pictures[0]
    question = ask("What is the word in Image-1?", 0, word, shapes)
    for limit in (2, 1, 1):
        client = EvalClient(demo, 9, limit, AnswerStore(tmp_path, "m"))
        client.ask([question], lambda *_: None)
    assert (client.counts.from_store, client.counts.pictures_left_out) == (1, 1)
    with_one = AnswerStore(tmp_path, "m").find(f"{question.with_at_most(1)[0].key()}/0")
    with_two = AnswerStore(tmp_path, "m").find(f"{question.key()}/0")
    assert with_one.prompt_tokens < with_two.prompt_tokens


def test_the_same_question_asked_again_is_drawn_again(demo, questions, tmp_path):
    drawn = SamplingParams(temperature=5, max_tokens=12, seed=7, ignore_eos=True)
    question = Question("demo", 0, questions[0].prompt, drawn, questions[0].pictures)
    first = EvalClient(demo, 9, 9, AnswerStore(tmp_path, "m")).ask([question] * 3, lambda *_: None)
    assert len({answer.token_ids for answer in first}) == 3
    again = EvalClient(demo, 9, 9, AnswerStore(tmp_path, "m"))
    assert again.ask([question] * 3, lambda *_: None) == first
    assert again.counts.from_store == 3
