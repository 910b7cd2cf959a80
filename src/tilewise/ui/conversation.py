"""A conversation of the web chat: questions with their pictures and videos, answers, and what each answer took."""

from __future__ import annotations

import mimetypes
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewise.chat_server import Delta, data_url
from tilewise.inputs.pieces import numbered

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class ChatSettings:
    """Options of a question; None = as the server does by itself."""

    model: str
    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    max_tiles: int | None = None
    """Most tiles of a picture, its thumbnail not counted."""
    detail: str = "auto"
    """OpenAI's word for how closely pictures are looked at: auto, low or high."""
    thinking: bool = False
    explain: bool = False
    """True for a Tilewise server, which tells how it made an answer."""

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a request beside its messages."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "mm_processor_kwargs": None if self.max_tiles is None else {"max_dynamic_patch": self.max_tiles},
            "chat_template_kwargs": {"enable_thinking": True} if self.thinking else None,
            "explain": True if self.explain else None,
            "skip_special_tokens": False,  # <ref> and <box> are special tokens in InternVL's vocabularies
        }
        return {"model": self.model, **{name: value for name, value in given.items() if value is not None}}


@dataclass
class Exchange:
    """A question and its answer, as far as it has come. Moments are seconds on the monotonic clock."""

    question: str
    files: tuple[str, ...] = ()
    """Paths of pictures and videos."""
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float | None = None
    answer: str = ""
    reasoning: str = ""
    problem: str = ""
    """Sentence that says why there is no answer, or not all of it."""
    usage: dict[str, Any] = field(default_factory=dict)
    explanation: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None

    def take(self, delta: Delta) -> None:
        """Add a part of the answer that came over the stream."""
        self.ended = time.monotonic()
        if self.first is None and (delta.text or delta.reasoning):
            self.first = self.ended
        self.answer += delta.text
        self.reasoning += delta.reasoning
        self.usage = delta.usage or self.usage
        self.explanation = delta.explanation or self.explanation
        self.finish_reason = delta.finish_reason or self.finish_reason

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part: as the server measured them, else the wait for the first token and the rest."""
        if self.explanation:
            return _apart(self.explanation["seconds"])
        if self.first is None or self.ended is None:
            return {}
        return {"prefill": self.first - self.began, "answer": self.ended - self.first}

    @property
    def counts(self) -> str:
        """Tokens of question and answer in one line; empty where the server did not count."""
        details = self.usage.get("prompt_tokens_details") or {}
        named = (("cached_tokens", "cached"), ("tiles", "tiles"))
        more = ", ".join(f"{details[key]} {name}" for key, name in named if details.get(key))
        prompt, answer = self.usage.get("prompt_tokens", 0), self.usage.get("completion_tokens", 0)
        return f"{prompt} prompt tokens{f' ({more})' if more else ''}, {answer} answer tokens" if self.usage else ""

    @property
    def cached(self) -> list[list[bool]]:
        """One list a picture: which of its tiles were there already; empty where the server has not told.

        The server tells of all pictures of the conversation, of which these are the last.
        """
        told = self.explanation.get("pictures", ())
        return [[not new for new in picture["encoded"]] for picture in told[len(told) - len(self.pictures) :]]

    @property
    def pictures(self) -> tuple[str, ...]:
        return tuple(file for file in self.files if not is_video(file))


@dataclass
class ChatConversation:
    """The exchanges of one browser tab. Whoever answers writes to the last one."""

    exchanges: list[Exchange] = field(default_factory=list)

    def ask(self, question: str, files: Iterable[str] = ()) -> Exchange:
        """Begin an exchange. It replaces a failed one before it, without any answer, whose pictures it takes over."""
        left: tuple[str, ...] = ()
        if self.exchanges and not self.exchanges[-1].answer and self.exchanges[-1].problem:
            left = self.exchanges.pop().files
        self.exchanges.append(Exchange(question, tuple(files) or left))
        return self.exchanges[-1]

    def again(self, number: int, question: str | None = None) -> Exchange:
        """Begin exchange `number` anew, with another question if there is one; later ones are forgotten."""
        old = self.exchanges[number]
        del self.exchanges[number:]
        return self.ask(old.question if question is None else question, old.files)

    def body(self, settings: ChatSettings) -> dict[str, Any]:
        """Return the request for an answer to the last question. Raises OSError for a file that is gone."""
        return {**settings.fields, "messages": self.messages(settings, data_part)}

    def messages(self, settings: ChatSettings, part: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
        """Return OpenAI's messages up to the last question; `part` makes a content part of a file's path."""
        system = settings.system
        found: list[dict[str, Any]] = [{"role": "system", "content": system}] if system.strip() else []
        for exchange in self.exchanges:
            if found and found[-1]["role"] == "user":  # that got no answer
                found.pop()
            pictures = 0 if exchange.pictures != exchange.files else len(exchange.files)
            text = {"type": "text", "text": numbered(exchange.question, pictures)}
            files = [_with_detail(part(file), settings.detail) for file in exchange.files]
            found.append({"role": "user", "content": [*files, text] if files else exchange.question})
            if exchange.answer and exchange is not self.exchanges[-1]:
                found.append({"role": "assistant", "content": exchange.answer})
        return found

    def as_data(self) -> list[dict[str, Any]]:
        """Return what a browser keeps, in JSON's types: everything but the moments of this process."""
        kept = ("question", "files", "answer", "reasoning", "problem", "usage", "explanation", "finish_reason")
        return [{name: getattr(exchange, name) for name in kept} for exchange in self.exchanges]

    @classmethod
    def from_data(cls, data: Any, folders: Sequence[Path]) -> ChatConversation:
        """Read what `as_data` gave. It comes from a browser: what is not as it should be ends the conversation there.

        Files are taken only inside some folders: that of uploads, whose names nobody can guess, and that of examples.
        """
        found = cls()
        for entry in data if isinstance(data, list) else ():
            try:
                exchange = Exchange(**{**entry, "files": tuple(map(str, entry["files"]))})
            except (TypeError, KeyError):
                break
            if not all(_inside(file, folders) for file in exchange.files):
                break
            if not (exchange.answer or exchange.problem):
                exchange.problem = "The page was closed before an answer came: ask again."
            found.exchanges.append(exchange)
        return found


def _inside(file: str, folders: Sequence[Path]) -> bool:
    path = Path(file).resolve()
    return path.is_file() and any(path.is_relative_to(folder.resolve()) for folder in folders)


def _with_detail(part: dict[str, Any], detail: str) -> dict[str, Any]:
    if detail == "auto" or "image_url" not in part:
        return part
    return {**part, "image_url": {**part["image_url"], "detail": detail}}


def is_video(file: str) -> bool:
    return Path(file).suffix.lower() in VIDEO_SUFFIXES


def media_type(file: str) -> str:
    return mimetypes.guess_type(file)[0] or ("video/mp4" if is_video(file) else "image/png")


def data_part(file: str) -> dict[str, Any]:
    """Return a picture or video as a content part that holds its data. Raises OSError."""
    kind = "video" if is_video(file) else "image"
    url = data_url(media_type(file), Path(file).read_bytes())
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _apart(seconds: dict[str, float]) -> dict[str, float]:
    """Return a server's seconds by part, with the wait for tiles taken out of queue and prefill, where it lies."""
    waited = max(0.0, seconds["queue"] + seconds["prefill"] - seconds["encode"])
    queue = min(seconds["queue"], waited)
    return {**seconds, "queue": queue, "prefill": waited - queue}
