"""A server that takes pictures that come encoded: answers are those about the pictures, and the rest is named."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.encoded import demo_rows, part_of
from tests.inputs.media.test_tensor_file import saved
from tests.served import Served, question, served
from tests.server.live import error_of

ASKED = "What colour is the sign?"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("--enable-mm-embeds", "--dtype", "float32", "--max-model-len", "1024") as found:
        yield found
        assert found.stop() == 0


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return demo_rows("stop_sign.jpg")


def ask(server: Served, *parts: dict[str, Any], **fields: Any) -> Any:
    content = [*parts, {"type": "text", "text": ASKED}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0, **fields}
    return server.client.post("/v1/chat/completions", json=body)


def picture_part() -> dict[str, Any]:
    return question(ASKED, "stop_sign.jpg")[0]["content"][0]


def told(answer: Any) -> tuple[str, int]:
    found = answer.json()
    return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]


def test_the_answer_is_that_about_the_picture(server, rows):
    expected = told(ask(server, picture_part(), cache_salt="a"))
    encoded = server.metric("tilewise:tiles_encoded_total")
    assert expected[0]
    assert told(ask(server, part_of(rows), cache_salt="b")) == expected
    assert server.metric("tilewise:tiles_encoded_total") == encoded
    streamed = ask(server, part_of(rows), stream=True).text
    assert streamed.endswith("data: [DONE]\n\n")


def test_both_kinds_in_one_prompt_and_by_uuid(server, rows):
    expected = told(ask(server, picture_part(), picture_part()))
    named = {**part_of(rows), "uuid": "a picture"}
    assert told(ask(server, picture_part(), named)) == expected
    assert told(ask(server, {"type": "image_embeds", "image_embeds": None, "uuid": "a picture"}, picture_part())) == (
        expected
    )


def test_tokenize_counts_them(server, rows):
    messages = [{"role": "user", "content": [part_of(rows), {"type": "text", "text": ASKED}]}]
    count = server.client.post("/tokenize", json={"messages": messages}).json()["count"]
    assert count == told(ask(server, part_of(rows)))[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[..., :64], "rows of 64 numbers, this model's have 128"),
        (lambda rows: rows[:, :5], "each tile of this model has 16"),
        (lambda rows: rows * torch.nan, "nan in row 0, column 0 is no number"),
        (lambda rows: rows.int(), "names 'torch IntStorage'"),
        (lambda rows: rows.to_sparse(), "names 'torch._utils _rebuild_sparse_tensor'"),
    ],
)
def test_what_is_wrong_is_named(server, rows, change, says):
    error = error_of(ask(server, part_of(change(rows))))
    assert says in error["message"]
    assert error["param"] == "messages[0].content[0]"
    assert ask(server).status_code == 200


def test_unknown_keys_of_a_part_are_named(server, rows):
    answer = ask(server, {**part_of(rows), "detail": "low", "who": "me"})
    assert answer.headers["x-tilewise-ignored"] == "messages.content.detail, messages.content.who"


def test_without_the_option_the_flag_is_named(live, rows):
    error = error_of(ask(live, part_of(rows)))
    assert "image_embeds are not taken without --enable-mm-embeds" in error["message"]
    assert error["param"] == "messages[0].content[0]"


def test_large_files_meet_the_limit_of_bodies(server):
    data = base64.b64encode(saved(torch.zeros(2**25))).decode()
    answer = ask(server, {"type": "image_embeds", "image_embeds": data})
    assert answer.status_code == 413
