"""Conversations against scripted answers: what is kept, what is shown."""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import pytest

from tilewise.chat_server import Delta, ServerProblem
from tilewise.cli.chat.session import Session, stats_lines
from tilewise.cli.chat.talk import Quit, Screen, media_part, run_command
from tilewise.errors import InvalidMedia, InvalidRequest


class Script:
    """Answers every question with the same deltas; an exception among them is raised."""

    def __init__(self, *deltas: Delta | Exception) -> None:
        self.deltas = deltas
        self.bodies: list[dict[str, Any]] = []
        self.closed = 0

    def answer(self, body: dict[str, Any]) -> Generator[Delta]:
        self.bodies.append(body)
        try:
            for delta in self.deltas:
                if isinstance(delta, Exception):
                    raise delta
                yield delta
        finally:
            self.closed += 1


def seconds() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 0.5


def session_of(*deltas: Delta | Exception, **fields: Any) -> tuple[Session, Script]:
    script = Script(*deltas)
    ticks = seconds()
    return Session(script, "m", clock=lambda: next(ticks), **fields), script


def test_a_conversation_is_sent_whole():
    session, script = session_of(Delta("A"), Delta("B"), system="Be kind.", options={"temperature": 0})
    session.attached.append({"type": "image_url", "image_url": {"url": "http://a/b.png"}})
    assert "".join(delta.text for delta in session.ask("What?")) == "AB"
    list(session.ask("And?"))
    assert script.bodies[1] == {
        "model": "m",
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "http://a/b.png"}},
                    {"type": "text", "text": "What?"},
                ],
            },
            {"role": "assistant", "content": "AB"},
            {"role": "user", "content": "And?"},
        ],
    }


def test_a_stopped_answer_stays_and_its_request_is_closed():
    session, script = session_of(Delta("A"), Delta("B"))
    with closing(session.ask("What?")) as deltas:
        next(deltas)
    assert session.messages[-1] == {"role": "assistant", "content": "A"}
    assert script.closed == 1


def test_a_question_that_was_stopped_before_its_answer_can_be_asked_again():
    session, _ = session_of(Delta("", "Hm"), Delta("A"))
    session.attached.append({"type": "image_url"})
    with closing(session.ask("What?")) as deltas:
        next(deltas)
    assert (session.messages, len(session.attached)) == ([], 1)


def test_a_failed_question_was_never_asked():
    session, _ = session_of(Delta("A"), ServerProblem("gone"))
    session.attached.append({"type": "image_url"})
    with pytest.raises(ServerProblem, match="gone"):
        list(session.ask("What?"))
    assert (session.messages, session.answers, len(session.attached)) == ([], [], 1)


def test_stats_are_of_the_last_answer_and_of_all():
    details = {"cached_tokens": 2, "tiles": 13}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": details}
    session, _ = session_of(Delta("", "Hm"), Delta("A"), Delta(finish_reason="length"), Delta(usage=usage))
    assert stats_lines(session.answers) == ["There is no answer yet."]
    list(session.ask("What?"))
    list(session.ask("And?"))
    assert stats_lines(session.answers) == [
        "last answer: 7 prompt tokens (cached 2, tiles 13), 3 answer tokens; first token after 0.50 s, "
        "all after 2.00 s, cut off at its longest",
        "2 answers: 14 prompt tokens (cached 4, tiles 26), 6 answer tokens; 4.00 s in all",
    ]


def test_stats_say_what_a_server_does_not_count():
    session, _ = session_of(Delta("A"))
    list(session.ask("What?"))
    assert "the server counted nothing" in stats_lines(session.answers)[0]
    session, _ = session_of(Delta("A"), Delta(usage={"prompt_tokens": 7, "completion_tokens": 3}))
    list(session.ask("What?"))
    assert "7 prompt tokens, 3 answer tokens" in stats_lines(session.answers)[0]


def shown(styled: bool, *deltas: Delta) -> str:
    out = io.StringIO()
    Screen(out, styled).show(deltas)
    return out.getvalue()


def test_reasoning_is_dimmed_and_only_at_a_terminal():
    deltas = (Delta("", "Let me"), Delta("", " see."), Delta("4"), Delta("2"))
    assert shown(True, *deltas) == "\033[2mLet me see.\033[0m\n\n42\n"
    assert shown(False, *deltas) == "42\n"
    assert shown(True, *deltas[:2]) == "\033[2mLet me see.\033[0m\n"


def test_an_answer_does_nothing_to_the_terminal():
    assert shown(True, Delta("\x1b]0;owned\x07a\x9b2J\rb")) == "]0;owneda2Jb\n"


def test_commands_change_the_conversation(tmp_path):
    session, _ = session_of(Delta("A"))
    list(session.ask("What?"))
    run_command(session, "/system Be brief.")
    run_command(session, f"/save {tmp_path / 'talk.json'}")
    assert json.loads((tmp_path / "talk.json").read_text()) == session.body()
    assert run_command(session, "/clear") == "A new conversation."
    assert session.body() == {"model": "m", "messages": [{"role": "system", "content": "Be brief."}]}
    run_command(session, "/system")
    assert session.system is None
    with pytest.raises(Quit):
        run_command(session, "/quit")


def test_mistakes_are_named(tmp_path):
    session, _ = session_of()
    (tmp_path / "there").touch()
    for line, message in [
        ("/imag a.png", "no command /imag. Did you mean /image?"),
        ("/image", "/image needs PATH|URL"),
        (f"/image {tmp_path}/none.png", "No such file"),
        ("/image notes.txt", "notes.txt is text/plain by its name, no image"),
        ("/video picture.png", "no video"),
        (f"/save {tmp_path}/there", "exists: choose another name"),
    ]:
        with pytest.raises((InvalidRequest, InvalidMedia), match=message.replace("?", r"\?").replace("|", r"\|")):
            run_command(session, line)
    assert session.attached == []


def test_media_are_files_or_urls(tmp_path):
    (tmp_path / "a b.png").write_bytes(b"\x89PNG")
    quoted = media_part("image", f'"{tmp_path}/a b.png"')
    assert quoted["image_url"]["url"] == "data:image/png;base64,iVBORw=="
    assert media_part("video", "https://a/clip.mp4") == {
        "type": "video_url",
        "video_url": {"url": "https://a/clip.mp4"},
    }
