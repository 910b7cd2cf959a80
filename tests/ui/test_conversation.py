"""Conversations of the web chat: what they ask, and what becomes of answers, mistakes and second tries."""

import base64
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.served import PICTURES, ROOT
from tilewise.chat_server import Delta
from tilewise.ui.conversation import ChatConversation, ChatSettings
from tilewise.ui.export import as_curl, as_llm, as_markdown, as_openai

CIRCLE, WORD = str(PICTURES / "color_and_shape.png"), str(PICTURES / "reading_text.png")
SETTINGS = ChatSettings("demo", temperature=0.0, max_tokens=20)


@pytest.fixture
def conversation():
    made = ChatConversation()
    made.ask("What color is the circle?", [CIRCLE]).take(Delta("yellow"))
    return made


def test_a_question_is_asked_behind_all_before_it(conversation):
    conversation.ask("Compare.", [CIRCLE, WORD])
    body = conversation.body(ChatSettings("demo", system="Be brief.", max_tiles=4, thinking=True, explain=True))
    assert (body["mm_processor_kwargs"], body["explain"]) == ({"max_dynamic_patch": 4}, True)
    system, first, answer, second = body["messages"]
    assert (system, answer["content"]) == ({"role": "system", "content": "Be brief."}, "yellow")
    data = base64.b64decode(first["content"][0]["image_url"]["url"].partition(",")[2])
    assert data == (PICTURES / "color_and_shape.png").read_bytes()
    assert second["content"][2]["text"] == "Image-1: <image>\nImage-2: <image>\nCompare."


def test_a_question_without_an_answer_is_not_asked_twice():
    conversation = ChatConversation()
    conversation.ask("One?").problem = "No server answers."
    conversation.ask("Two?")
    assert [message["content"] for message in conversation.body(SETTINGS)["messages"]] == ["Two?"]


def test_a_question_that_is_asked_again_has_its_picture_still():
    conversation = ChatConversation()
    conversation.ask("What is it?", [CIRCLE]).problem = "The server asks for a key."
    assert conversation.ask("What is it?").files == (CIRCLE,)
    conversation.exchanges[-1].problem = "No server answers."
    assert conversation.ask("And this?", [WORD]).files == (WORD,)


def test_a_question_is_edited(conversation):
    conversation.ask("And the word?").take(Delta("cat"))
    assert conversation.again(0, "What shape is it?").files == (CIRCLE,)
    assert [exchange.question for exchange in conversation.exchanges] == ["What shape is it?"]


def test_detail_goes_with_pictures_alone(conversation):
    conversation.ask("And this?", [WORD, "film.mp4"])
    messages = conversation.messages(replace(SETTINGS, detail="low"), lambda file: _part(file))
    assert messages[0]["content"][0]["image_url"] == {"url": "color_and_shape.png", "detail": "low"}
    assert "detail" not in str(messages[2]["content"][1])


def _part(file):
    kind = "video_url" if file.endswith("mp4") else "image_url"
    return {"type": kind, kind: {"url": Path(file).name}}


def test_what_a_browser_kept_is_read_again(conversation):
    conversation.ask("And the word?").problem = "No server answers."
    kept = json.loads(json.dumps(conversation.as_data()))
    found = ChatConversation.from_data(kept, [PICTURES])
    assert found.as_data() == conversation.as_data()
    assert found.exchanges[0].files == (CIRCLE,)


def test_a_question_that_the_page_was_closed_on_says_so():
    conversation = ChatConversation()
    conversation.ask("One?")
    (again,) = ChatConversation.from_data(conversation.as_data(), []).exchanges
    assert "ask again" in again.problem


@pytest.mark.parametrize(
    "changed",
    [
        {"files": ["/etc/passwd"]},
        {"files": [str(PICTURES / ".." / "questions.json")]},
        {"files": [str(PICTURES / "gone.png")]},
        {"files": None},
        {"unknown": 1},
    ],
)
def test_a_browser_cannot_name_files_of_the_server(conversation, changed):
    kept = [*conversation.as_data(), {**conversation.as_data()[0], **changed}]
    assert len(ChatConversation.from_data(kept, [PICTURES]).exchanges) == 1
    assert not ChatConversation.from_data({"no": "list"}, [PICTURES]).exchanges


def test_seconds_are_the_servers_where_it_tells():
    exchange = ChatConversation().ask("?")
    exchange.began = time.monotonic() - 2
    exchange.take(Delta("a"))
    assert exchange.seconds["prefill"] == pytest.approx(2, abs=1)
    parts = {
        "download": 0.0,
        "decode": 0.1,
        "preprocess": 0.2,
        "queue": 0.5,
        "encode": 0.6,
        "prefill": 0.4,
        "answer": 1,
    }
    picture = {"width": 2, "height": 2, "columns": 2, "rows": 1, "encoded": [True, False, True]}
    exchange.files = ("second.png",)
    exchange.take(Delta(explanation={"seconds": parts, "pictures": [{**picture, "encoded": [True]}, picture]}))
    found = exchange.seconds
    assert found["queue"] + found["prefill"] + found["encode"] == pytest.approx(0.9)
    assert exchange.cached == [[False, True, False]]


def test_a_conversation_is_kept_as_markdown(conversation):
    conversation.exchanges[0].answer = "<ref>it</ref><box>[[1, 2, 3, 4]]</box>"
    assert as_markdown(conversation) == (
        "![](color_and_shape.png)\n\n**You:** What color is the circle?\n\n**Model:** it\n"
    )


def test_programs_are_whole(conversation, tmp_path):
    """Texts with quotes, dollars and line ends come back as they are; pictures are read from files beside."""
    hard = 'Say "$HOME `id`" and \\n\nEND'
    conversation.ask(hard)
    curl = re.sub("curl http://x/v1/chat/completions .*", "cat <<END", as_curl(conversation, SETTINGS, "http://x/v1"))
    (tmp_path / "color_and_shape.png").write_bytes(b"picture")
    body = subprocess.run(["bash"], input=curl, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    messages = json.loads(body)["messages"]
    assert messages[-1]["content"] == hard
    assert messages[0]["content"][0]["image_url"]["url"].endswith(base64.b64encode(b"picture").decode())
    for program in (as_openai(conversation, SETTINGS, "http://x/v1"), as_llm(conversation, SETTINGS, "demo")):
        compile(program, "program", "exec")
        assert repr(hard)[1:-1] in program or json.dumps(hard)[1:-1] in program


def test_the_llm_program_answers(conversation, tmp_path):
    (tmp_path / "color_and_shape.png").write_bytes((PICTURES / "color_and_shape.png").read_bytes())
    program = as_llm(conversation, SETTINGS, "demo")
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.stdout.strip() == "yellow", done.stderr
