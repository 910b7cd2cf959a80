"""Session: a conversation so far, and what its answers took. It owns its messages; nothing else changes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from tilewise.chat_server import Delta, ServerProblem


class AnsweringServer(Protocol):
    """A server as a session needs it: a `ChatServer`."""

    def answer(self, body: dict[str, Any]) -> Generator[Delta]: ...


@dataclass
class ChatAnswer:
    """One answer, so far or whole; `usage` is None where the server did not get to it, or does not count."""

    began: float
    text: str = ""
    first: float | None = None
    """Moment of the first text or reasoning, in seconds on the session's clock, as are `began` and `ended`."""
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
    server: AnsweringServer
    model: str
    system: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    attached: list[dict[str, Any]] = field(default_factory=list)
    """Pictures and videos of the next question."""
    answers: list[ChatAnswer] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def body(self, *more: dict[str, Any]) -> dict[str, Any]:
        """Return the body of a request: the conversation so far, with `more` messages behind it."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.messages, *more], **self.options}

    def ask(self, question: str) -> Generator[Delta]:
        """Ask a question, and yield the answer as it comes.

        An answer that is stopped stays in the conversation as far as it came. After a ServerProblem the conversation
        is what it was before the question.
        """
        text = {"type": "text", "text": question}
        asked = {"role": "user", "content": [*self.attached, text] if self.attached else question}
        answer = ChatAnswer(self.clock())
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

    def _keep(self, asked: dict[str, Any], answer: ChatAnswer) -> None:
        self.messages += [asked, {"role": "assistant", "content": answer.text}]
        self.answers.append(answer)
        self.attached = []

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages, self.attached, self.answers = [], [], []


def stats_lines(answers: Sequence[ChatAnswer]) -> list[str]:
    """Return a line about the last answer, and one about all of them if there are several."""
    if not answers:
        return ["There is no answer yet."]
    lines = [f"last answer: {_counts(answers[-1:])}; {_times(answers[-1])}"]
    if len(answers) > 1:
        seconds = sum(answer.ended - answer.began for answer in answers)
        lines.append(f"{len(answers)} answers: {_counts(answers)}; {seconds:.2f} s in all")
    return lines


def _counts(answers: Sequence[ChatAnswer]) -> str:
    usages = [answer.usage for answer in answers if answer.usage is not None]
    if not usages:
        return "the server counted nothing"
    details = [usage.get("prompt_tokens_details") or {} for usage in usages]
    # Servers leave out what they do not count.
    more = [
        f"{name} {sum(detail.get(key) or 0 for detail in details)}"
        for key, name in (("cached_tokens", "cached"), ("tiles", "tiles"))
        if any(detail.get(key) is not None for detail in details)
    ]
    prompt = sum(usage.get("prompt_tokens") or 0 for usage in usages)
    generated = sum(usage.get("completion_tokens") or 0 for usage in usages)
    of_it = f" ({', '.join(more)})" if more else ""
    return f"{prompt} prompt tokens{of_it}, {generated} answer tokens"


def _times(answer: ChatAnswer) -> str:
    first = "" if answer.first is None else f"first token after {answer.first - answer.began:.2f} s, "
    ending = ", cut off at its longest" if answer.finish_reason == "length" else ""
    return f"{first}all after {answer.ended - answer.began:.2f} s{ending}"
