"""What is asked again, how often, and what is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial

import pytest

from tilewise.errors import EngineDead
from tilewise.jobs.feed import TaskClient
from tilewise.jobs.input import InputLine, Task
from tilewise.jobs.output import BatchResult
from tilewise.jobs.server import post

Decide = Callable[[str, int], int]


class App:
    """An ASGI application whose answers have the status that `decide(prompt, attempt)` gives."""

    def __init__(self, decide: Decide, retry_after: bytes = b"0") -> None:
        self.decide, self.retry_after = decide, retry_after
        self.asked: list[tuple[str, str]] = []
        self.at_once: dict[int, int] = {}
        self.inside: list[int] = []

    async def __call__(self, scope, receive, send) -> None:
        headers, data = dict(scope["headers"]), b""
        while (message := await receive()).get("more_body"):
            data += message["body"]
        data += message["body"]
        assert int(headers[b"content-length"]) == len(data)
        prompt, name = json.loads(data)["prompt"], headers[b"x-request-id"].decode()
        attempt = int(name.rpartition("-")[2])
        self.asked.append((prompt, name))
        self.inside.append(attempt)
        most = max(self.at_once.get(attempt, 0), self.inside.count(attempt))
        self.at_once[attempt] = most
        await asyncio.sleep(0.001)
        self.inside.remove(attempt)
        status = self.decide(prompt, attempt)
        if status == 0:
            raise RuntimeError("a fault of the application")
        body = json.dumps({"attempt": attempt}).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"retry-after", self.retry_after)]})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:]})


async def ready() -> None:
    return None


def ask(app: App, *prompts: str, retries: int = 3) -> list[BatchResult]:
    async def all_of_them() -> list[BatchResult]:
        client = TaskClient(partial(post, app), ready, retries)
        tasks = [Task(prompt, "/x", json.dumps({"prompt": prompt}).encode()) for prompt in prompts]
        return await asyncio.gather(*(client(InputLine(n, b"", 0, 5, n), task) for n, task in enumerate(tasks, 1)))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("status", [200, 400, 404, 413])
def test_what_the_line_is_the_reason_of_is_asked_once(status):
    app = App(lambda *_: status)
    [result] = ask(app, "a")
    name = "batch_req_1_0000000000000005-1"
    assert app.asked == [("a", name)]
    assert result.response == {"status_code": status, "request_id": name, "body": {"attempt": 1}}
    assert result.failed is (status >= 400)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_is_our_failure_is_asked_again(status):
    [result] = ask(App(lambda _, attempt: status if attempt < 4 else 200), "a")
    assert result.response["body"] == {"attempt": 4}
    assert not result.failed
    [result] = ask(App(lambda *_: status), "a")
    assert (result.outcome, result.response["body"]) == (f"{status}", {"attempt": 4})
    [result] = ask(App(lambda *_: status), "a", retries=0)
    assert result.response["body"] == {"attempt": 1}


def test_too_many_at_once_is_no_failure():
    answers = iter([429] * 30 + [200])
    app = App(lambda *_: next(answers))
    [result] = ask(app, "a", retries=0)
    assert result.outcome == "200"
    assert len(app.asked) == 31


def test_a_fault_of_the_application_is_a_failed_line(caplog):
    app = App(lambda prompt, _: 0 if prompt == "bad" else 200)
    app.retry_after = b"0"
    bad, good = ask(app, "bad", "good", retries=0)
    assert (bad.outcome, good.outcome) == ("500", "200")
    assert "a fault of the application" in caplog.text


def test_lines_that_failed_twice_are_asked_one_at_a_time():
    """So that the one which ends engines does not take all others with it."""
    app = App(lambda _, attempt: 503 if attempt < 4 else 200)
    assert {result.outcome for result in ask(app, *"abcdef")} == {"200"}
    together, alone = [app.at_once[1], app.at_once[2]], [app.at_once[3], app.at_once[4]]
    assert min(together) > 1  # all six, unless a slow machine takes them one behind the other
    assert alone == [1, 1]


def test_without_an_engine_nothing_is_asked():
    async def never() -> None:
        raise EngineDead("It is given up.")

    app = App(lambda *_: 200)
    with pytest.raises(EngineDead):
        asyncio.run(TaskClient(partial(post, app), never, 3)(InputLine(1, b"", 0, 5, 1), Task("a", "/x", b"{}")))
    assert app.asked == []
