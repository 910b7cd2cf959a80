"""The rows of the table, and the tasks that measure them: what is asked of a peer, and which of its times count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.peers.work import Prompt, Sizes, Work

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer


@dataclass(frozen=True)
class Row:
    """`label` may name fields of Sizes in braces."""

    label: str
    unit: str
    more_is_better: bool = False

    def title(self, sizes: Sizes) -> str:
        return f"{self.label.format(sizes=sizes)}, {self.unit}"


@dataclass(frozen=True)
class Value:
    row: str
    value: float
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class Task:
    """Tasks of one group share a process, so that the peer is loaded once for them."""

    group: str
    rows: tuple[str, ...]
    measure: Callable[[Peer, Work], Iterator[Value]]
    repeats: bool = True
    """Several times a round; otherwise it takes so long that once is enough."""
    warm: bool = True
    """Once before it counts."""
    only: str | None = None
    """The one peer that is asked."""


def tile(peer: Peer, work: Work) -> Iterator[Value]:
    yield Value("tile", peer.tile())


def first_token(peer: Peer, work: Work) -> Iterator[Value]:
    answer = peer.answer([work.question(work.tile())], 1)
    yield Value("first_token", answer.total, answer.prompt_tokens)


def known_picture(peer: Peer, work: Work) -> Iterator[Value]:
    picture = work.tile()
    peer.answer([work.question(picture)], 2)
    answer = peer.answer([work.question(picture)], 1)
    yield Value("known_picture", answer.total, answer.prompt_tokens)


def decode(peer: Peer, work: Work) -> Iterator[Value]:
    tokens = work.sizes.answer
    answer = peer.answer([work.question()], tokens)
    yield Value("decode", (tokens - 1) / (answer.total - answer.first), answer.prompt_tokens)


def large_picture(peer: Peer, work: Work) -> Iterator[Value]:
    tokens = work.sizes.answer // 2
    answer = peer.answer([work.question(work.large())], tokens)
    yield Value("first_token_large", answer.first, answer.prompt_tokens)
    yield Value("decode_large", (tokens - 1) / (answer.total - answer.first), answer.prompt_tokens)


def streams_text(peer: Peer, work: Work) -> Iterator[Value]:
    sizes = work.sizes
    texts = [work.text(sizes.text_prompt) for _ in range(sizes.streams)]
    yield _streams(peer, work, "streams_text", texts, sizes.text_answer)


def streams_picture(peer: Peer, work: Work) -> Iterator[Value]:
    sizes = work.sizes
    texts = [work.text(sizes.question) for _ in range(sizes.streams)]
    yield _streams(peer, work, "streams_picture", texts, sizes.picture_answer, pictures=True)


def _streams(peer: Peer, work: Work, row: str, texts: list[str], tokens: int, pictures: bool = False) -> Value:
    prompts = [Prompt(text, work.tile() if pictures else None) for text in texts]
    answer = peer.answer(prompts, tokens)
    return Value(row, len(prompts) * tokens / answer.total, answer.prompt_tokens)


def quote(peer: Peer, work: Work) -> Iterator[Value]:
    yield Value("quote", peer.quote(work.digits(work.sizes.quoted)))


def preprocess(peer: Peer, work: Work) -> Iterator[Value]:
    photos = [work.photo() for _ in range(work.sizes.photos)]
    started = time.perf_counter()
    tiles = peer.preprocess(photos)
    yield Value("preprocess", tiles / (time.perf_counter() - started))


ROWS: dict[str, Row] = {
    "start": Row("start of the process to the first answer", "s"),
    "tile": Row("one tile through the tower", "s"),
    "first_token": Row("first token, 1-tile picture", "s"),
    "first_token_large": Row("first token, {sizes.large_tiles}-tile picture", "s"),
    "known_picture": Row("first token, known picture, new question", "s"),
    "decode": Row("decode, one stream", "tok/s", True),
    "decode_large": Row("decode after a {sizes.large_tiles}-tile picture", "tok/s", True),
    "quote": Row("decode of an answer that quotes its prompt, guessing ahead, over plain", "times", True),
    "streams_text": Row(
        "{sizes.streams} streams, text, {sizes.text_prompt} in, {sizes.text_answer} out", "tok/s", True
    ),
    "streams_picture": Row("{sizes.streams} streams, 1-tile picture, {sizes.picture_answer} out", "tok/s", True),
    "preprocess": Row("4-megapixel JPEGs to tiles", "tiles/s", True),
    "memory": Row("peak memory", "GB"),
}
TASKS: dict[str, Task] = {
    "tile": Task("tower", ("tile",), tile),
    "first_token": Task("single", ("first_token",), first_token),
    "known_picture": Task("single", ("known_picture",), known_picture, warm=False),
    "decode": Task("single", ("decode",), decode, warm=False),
    "preprocess": Task("single", ("preprocess",), preprocess),
    "large": Task("large", ("first_token_large", "decode_large"), large_picture, repeats=False, warm=False),
    "streams_text": Task("streams", ("streams_text",), streams_text, repeats=False, warm=False),
    "streams_picture": Task("streams", ("streams_picture",), streams_picture, repeats=False, warm=False),
    "quote": Task("quote", ("quote",), quote, repeats=False, warm=False, only="tilewise"),
}
ONE_ENGINE = ("single", "large", "streams")
"""Groups whose processes hold one engine and nothing beside it, so that their memory is its own."""
GROUPS = tuple(dict.fromkeys(task.group for task in TASKS.values()))
