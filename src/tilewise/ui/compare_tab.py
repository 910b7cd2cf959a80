"""CompareTab: one question to two models or with two settings, side by side, and where the answers part."""

from __future__ import annotations

import html
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from tilewise.errors import TilewiseError
from tilewise.outputs.boxes import without_marks
from tilewise.ui.conversation import ChatConversation, ChatSettings, Exchange
from tilewise.ui.figures import time_strip
from tilewise.ui.servers import Servers


@dataclass(frozen=True)
class SideControls:
    """The components of one side, in the order in which handlers get their values."""

    model: gr.Dropdown
    tiles: gr.Slider
    temperature: gr.Slider
    answer: gr.HTML
    strip: gr.HTML

    @classmethod
    def build(cls, words: Any, title: str, tiles: int) -> SideControls:
        with gr.Column(min_width=300):
            model = gr.Dropdown([], label=words(title), elem_id=f"{title}-model")
            cuts = gr.Slider(1, 40, tiles, step=1, label=words("tiles"))
            temperature = gr.Slider(0, 2, 0, step=0.05, label=words("temperature"))
            answer = gr.HTML(elem_id=f"{title}-answer", elem_classes="compared", container=True)
            return cls(model, cuts, temperature, answer, gr.HTML(elem_id=f"{title}-strip"))


class CompareTab:
    """Both sides are asked at the same time, each over a connection of its own."""

    def __init__(self, servers: Servers, words: Any, key: gr.Textbox) -> None:
        self._servers = servers
        self.question = gr.MultimodalTextbox(
            elem_id="compare-ask", show_label=False, placeholder=words("question"), file_count="multiple",
            file_types=["image"], sources=["upload"], label="Question",
        )  # fmt: skip
        with gr.Row():
            self.left = SideControls.build(words, "left", 1)
            self.right = SideControls.build(words, "right", 12)
        sides = (self.left, self.right)
        inputs = [part for side in sides for part in (side.model, side.tiles, side.temperature)]
        outputs = [self.left.answer, self.left.strip, self.right.answer, self.right.strip]
        self.question.submit(self.ask, [self.question, key, *inputs], outputs)

    def ask(self, asked: dict[str, Any], key: str, *values: Any) -> Iterator[list[str]]:
        """Ask both sides, and yield what is shown whenever one of them has more."""
        sides = [_Side(self._servers, key, asked, values[start : start + 3]) for start in (0, 3)]
        news: queue.Queue[None] = queue.Queue()
        for side in sides:
            threading.Thread(target=side.run, args=(news,), daemon=True).start()
        try:
            while not all(side.ended for side in sides):
                news.get()
                yield shown([side.exchange for side in sides])
        finally:
            for side in sides:
                side.stopped = True
        yield shown([side.exchange for side in sides])


class _Side:
    """One side's request, which a thread answers."""

    def __init__(self, servers: Servers, key: str, asked: dict[str, Any], values: Sequence[Any]) -> None:
        self._servers, self._key = servers, key
        self._label, self._tiles, self._temperature = values
        self._conversation = ChatConversation()
        self.exchange = self._conversation.ask(asked["text"], [str(file) for file in asked["files"]])
        self.stopped = False
        """True once nobody waits for the answer."""
        self.ended = False

    def run(self, news: queue.Queue[None]) -> None:
        """Ask the side's server; `news` gets an item for each part of the answer, and one for its end."""
        try:
            card = self._servers.card(self._label)
            settings = ChatSettings(
                card.model, temperature=float(self._temperature), max_tiles=int(self._tiles), explain=card.ours
            )
            body = self._conversation.body(settings)
            with self._servers.open(card, self._key) as server, closing(server.answer(body)) as deltas:
                for delta in deltas:
                    if self.stopped:
                        return
                    self.exchange.take(delta)
                    news.put(None)
        except (TilewiseError, OSError) as error:
            self.exchange.problem = str(error)
        finally:
            self.ended = True
            news.put(None)


def shown(exchanges: Sequence[Exchange]) -> list[str]:
    """Return answer and times of both sides in HTML; from the word on where they part, both are marked."""
    texts = [without_marks(exchange.answer) for exchange in exchanges]
    common = common_words(*texts)
    found = []
    for exchange, text in zip(exchanges, texts, strict=True):
        same, rest = text[:common], text[common:]
        marked = f'<span class="differs">{html.escape(rest)}</span>' if rest else ""
        problem = f"<p>⚠️ {html.escape(exchange.problem)}</p>" if exchange.problem else ""
        found += [f'<div class="answer">{html.escape(same)}{marked}{problem}</div>', time_strip(exchange)]
    return found


def common_words(left: str, right: str) -> int:
    """Return the length of the longest common beginning that ends with a word, or of all if both are equal.

    >>> common_words("a red cat", "a red car"), common_words("same", "same")
    (6, 4)
    """
    length = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    if length == len(left) == len(right):
        return length
    return max(left.rfind(" ", 0, length), left.rfind("\n", 0, length)) + 1
