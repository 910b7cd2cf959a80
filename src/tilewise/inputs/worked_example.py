"""A worked example: the prompt that a conversation becomes, with its tokens counted part by part.

Sizes stand in for pictures, so nothing is decoded or cut. The ids are those that `Preparer.chat` makes.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tilewise.inputs.images import check_size, choose_grid, count_tiles
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.templates import ImageSlot, Message, Part, Piece, Special, Text, join_text, to_string
from tilewise.inputs.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, Tokenizer
from tilewise.resize import Size
from tilewise.types import Grid

PartKind = Literal["start", "header", "text", "image marks", "image rows", "closing", "opening"]


@dataclass(frozen=True)
class Conversation:
    """A conversation, with a size for each picture and a list of sizes for each video, in the order of the messages."""

    messages: Sequence[Message]
    media: Sequence[Size | list[Size]] = ()
    thinking: bool | None = None
    """True or False as a request may ask for reasoning; None = as the template does."""


@dataclass(frozen=True)
class PromptPart:
    """A stretch of the prompt. All texts together are the prompt; the rows of a picture have no text."""

    kind: PartKind
    turn: int
    role: str
    text: str
    tokens: int


@dataclass(frozen=True)
class PictureTiles:
    """The tiles into which a picture, or a frame of a video, is cut: the grid's tiles, then the thumbnail."""

    size: Size
    grid: Grid
    thumbnail: bool
    tiles: int
    tokens: int
    """Prompt tokens of the tiles' rows, without `<img>` and `</img>`."""


@dataclass(frozen=True)
class Run:
    """A token id that comes several times in a row."""

    id: int
    count: int


@dataclass(frozen=True)
class Example:
    prompt: str
    """The prompt as people write it: special tokens by name, `<image>` for a picture."""
    parts: tuple[PromptPart, ...]
    pictures: tuple[PictureTiles, ...]
    ids: tuple[int | Run, ...]
    total_tokens: int


def build_example(prepare: Preparer, conversation: Conversation) -> Example:
    """Work out the prompt of a conversation.

    Raises what `Preparer.chat` would, but for the length: a prompt that is too long can still be looked at.
    """
    template = prepare.spec.template
    parts = template.parts(conversation.messages, template.thinks_if(conversation.thinking))
    pieces = [piece for part in parts for piece in part.pieces]
    joined = join_text(pieces)
    pictures = tuple(_cut(prepare, conversation.media))
    rows = [picture.tokens for picture in pictures]
    ids = tuple(_with_pictures(prepare.chat_ids(joined), rows, prepare.tokenizer))
    counted = (*_start(prepare, joined), *_counted(parts, count_pieces(pieces, rows, prepare.tokenizer)))
    return Example(
        prompt="".join(part.text for part in counted),
        parts=counted,
        pictures=pictures,
        ids=ids,
        total_tokens=sum(item.count if isinstance(item, Run) else 1 for item in ids),
    )


def count_pieces(pieces: Sequence[Piece], rows: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the number of tokens of each piece; `rows` are those of each picture.

    Neighbouring texts are encoded as one, as in the prompt, and a token that reaches over several counts where it ends.
    """
    counts = [rows[piece.index] + 2 if isinstance(piece, ImageSlot) else int(_is_special(piece)) for piece in pieces]
    joined = join_text(pieces)
    place = 0  # in `joined`
    for is_text, group in itertools.groupby(range(len(pieces)), lambda number: isinstance(pieces[number], Text)):
        numbers = list(group)
        borders = list(itertools.accumulate(len(to_string([pieces[number]])) for number in numbers))
        if is_text and borders[-1]:
            for end in tokenizer.token_ends(joined, place):
                counts[numbers[bisect_left(borders, end)]] += 1
            place += 1
        elif not is_text:
            place += len(numbers)
    return counts


def _is_special(piece: Piece) -> bool:
    return isinstance(piece, Special)


def _start(prepare: Preparer, pieces: Sequence[Piece]) -> Iterator[PromptPart]:
    """Yield the start token, unless the template writes it itself."""
    start = prepare.spec.start_id
    if start is None:
        return
    token = prepare.tokenizer.token_text(start) or ""
    if not pieces or pieces[0] != Special(token):
        yield PromptPart("start", 0, "system", token, 1)


def _counted(parts: Sequence[Part], counts: Sequence[int]) -> Iterator[PromptPart]:
    tokens = iter(counts)
    for part in parts:
        if part.kind != "body":
            total = sum(itertools.islice(tokens, len(part.pieces)))
            yield PromptPart(part.kind, part.turn, part.role, to_string(part.pieces), total)
            continue
        for piece, count in zip(part.pieces, tokens, strict=False):
            text = to_string([piece])
            if isinstance(piece, ImageSlot):
                yield PromptPart("image marks", part.turn, part.role, text, 2)
                yield PromptPart("image rows", part.turn, part.role, "", count - 2)
            elif text:
                yield PromptPart("text", part.turn, part.role, text, count)


def _cut(prepare: Preparer, media: Sequence[Size | list[Size]]) -> Iterator[PictureTiles]:
    pictures = sum(isinstance(item, tuple) for item in media)
    tilings = prepare.options.tilings(prepare.spec.tiling, pictures)
    for item in media:
        tiling = tilings[0] if isinstance(item, tuple) else tilings[1]
        for size in [item] if isinstance(item, tuple) else item:
            check_size(size, prepare.options.limits)
            grid = choose_grid(*size, tiling)
            tiles = count_tiles(grid, tiling.thumbnail)
            thumbnail = tiles > grid[0] * grid[1]
            yield PictureTiles(size, grid, thumbnail, tiles, tiles * prepare.spec.tokens_per_tile)


def _with_pictures(ids: Sequence[int | ImageSlot], rows: Sequence[int], tokenizer: Tokenizer) -> Iterator[int | Run]:
    start, context, end = map(tokenizer.special_id, (IMAGE_START, IMAGE_CONTEXT, IMAGE_END))
    for item in ids:
        if isinstance(item, ImageSlot):
            yield from (start, Run(context, rows[item.index]), end)
        else:
            yield item
