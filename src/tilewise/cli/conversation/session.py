"""Session: a conversation so far, and what its answers took. It owns its messages; nothing else changes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from tilewise.cli.conversation.server import Delta, ServerProblem


class Answers(Protocol):
    """What a session asks: `ChatServer`."""

    def answer(self, body: dict[str, Any]) -> Generator[Delta]: ...


@dataclass
class Answer:
    """One answer, so far or whole; `usage` is None where the server did not get to it, or does not count."""

    began: float
    text: str = ""
    first: float | None = None
    """When the first of it came; moments are on the session's clock."""
    ended: float = 0.0
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None

    def add(self, delta: Delta, now: float) -> None:
        self.text += delta.text
        if self.first is None and (delta.text or delta.reasoning):
            self.first = now
        self.ended = now
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage


@dataclass
class Session:
    server: Answers
    model: str
    system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    attached: list[dict[str, Any]] = field(default_factory=list)
    """Pictures and videos of the next question."""
    answers: list[Answer] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def body(self, *more: dict[str, Any]) -> dict[str, Any]:
        """A request about the conversation and what follows it."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.messages, *more], **self.options}

    def ask(self, question: str) -> Generator[Delta]:
        """The answer as it comes. What was said before it was stopped stays; one that failed was never asked."""
        text = {"type": "text", "text": question}
        asked = {"role": "user", "content": [*self.attached, text] if self.attached else question}
        answer = Answer(self.clock())
        try:
            with closing(self.server.answer(self.body(asked))) as deltas:
                for delta in deltas:
                    answer.add(delta, self.clock())
                    yield delta
        except ServerProblem:
            raise
        except BaseException:  # stopped: by Ctrl-C, or by who reads
            if answer.text:
                self._keep(asked, answer)
            raise
        self._keep(asked, answer)

    def _keep(self, asked: dict[str, Any], answer: Answer) -> None:
        self.messages += [asked, {"role": "assistant", "content": answer.text}]
        self.answers.append(answer)
        self.attached = []

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages, self.attached, self.answers = [], [], []
