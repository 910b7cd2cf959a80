"""The pieces of a prompt: text, special tokens and places of pictures; and the messages that they come from.

A caller's text never meets the tokenizer's special tokens: only `Special` becomes one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tilewise.errors import InvalidRequest

ROLES = ("system", "user", "assistant")
IMAGE_MARKER = "<image>"
IMAGE_TOKEN = "<IMAGE_TOKEN>"
"""LMDeploy's marker, which means the same where pictures come."""
VIDEO_MARKER = "<video>"
CONTEXT_MARKER = re.compile(r"(?:<img>)?<IMG_CONTEXT>(?:</img>)?")
"""A picture's place in prompts that are written for other engines."""
_MARKERS = re.compile(f"({IMAGE_MARKER}|{IMAGE_TOKEN}|{VIDEO_MARKER})")


def numbered(question: str, pictures: int) -> str:
    """Return a question behind markers of its pictures, which are numbered if there are several, as in the training.

    A single picture, or a question with markers of its own, leaves the question as it is.
    """
    if pictures < 2 or IMAGE_MARKER in question:
        return question
    return "".join(f"Image-{number}: {IMAGE_MARKER}\n" for number in range(1, pictures + 1)) + question


@dataclass(frozen=True, slots=True)
class Special:
    """One special token of the tokenizer, by name."""

    token: str


@dataclass(frozen=True, slots=True)
class Text:
    """Text that stays text, whatever it looks like."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of picture (or video frame) number `index` of the prompt."""

    index: int


Piece = Special | Text | ImageSlot


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a prompt: what it is for, in which turn and whose, and its pieces, not joined yet."""

    kind: Literal["header", "body", "closing", "opening"]
    turn: int
    role: str
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class MediaPlace:
    """The place of the next picture or video among the parts of a message."""

    kind: Literal["image", "video"]


PartsOrder = Literal["media first", "as sent", "as looped"]
"""The ways to make one text of the parts of a message.

"media first": pictures, videos, then the texts, a line each, as in the training of the original checkpoints. "as sent":
every part on a line of its own, in the order of the request (vLLM's --interleave-mm-strings). "as looped": texts as
they are, and a line break behind each medium, as the template of `-hf` checkpoints loops over them.
"""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Its text may hold `<image>` and `<video>` markers; `images` and `videos` say how many it brings."""

    role: str
    """One of ROLES, tool (what it gave back stands in a turn of the user), or another where the template takes any."""
    text: str
    images: int = 0
    videos: tuple[int, ...] = ()  # frames of each video
    calls: tuple[str, ...] = ()
    """Tool calls of the assistant, each a JSON text."""
    parts: tuple[str | MediaPlace, ...] = ()
    """Texts and media as they came; empty where pictures, then videos, then one text came, or a text alone."""

    @property
    def media(self) -> int:
        """Number of pictures and frames."""
        return self.images + sum(self.videos)

    def body(self, first: int, order: PartsOrder = "media first") -> list[Piece]:
        """Return the text with its media in place, numbered from `first`; markers for the media win over any order."""
        between, behind = ("", "\n") if order == "as looped" else ("\n", "")
        texts = [part for part in self.parts if isinstance(part, str)]
        text = between.join(texts) if self.parts else self.text
        shown = self.images and (IMAGE_MARKER in text or IMAGE_TOKEN in text)
        marked = shown or (self.videos and VIDEO_MARKER in text)
        if order != "media first" and self.parts and not marked:
            marks = {"image": IMAGE_MARKER + behind, "video": VIDEO_MARKER + behind}
            text = between.join(part if isinstance(part, str) else marks[part.kind] for part in self.parts)
        return place_media(text, self.images, self.videos, first, f"The {self.role} message")


def place_media(text: str, images: int, videos: Sequence[int], first: int, where: str) -> list[Piece]:
    """Replace the markers in a text by image slots; media without markers go first, pictures before videos.

    `videos` are the frames of each video. Slots are numbered from `first`: the pictures, then the frames. A video of
    n frames becomes n lines `Frame1: <image>`. Markers of a kind that does not come are text: whoever asks about HTML
    writes them, too. Raises InvalidRequest, naming `where`, when markers and media of a kind that comes differ.
    """
    marker = IMAGE_TOKEN if IMAGE_MARKER not in text and IMAGE_TOKEN in text else IMAGE_MARKER
    text = _with_markers(text, VIDEO_MARKER, len(videos), where)
    text = _with_markers(text, marker, images, where)
    pictures, frames, lengths = itertools.count(first), itertools.count(first + images), iter(videos)
    pieces: list[Piece] = []
    for part in _MARKERS.split(text):
        if part == marker and images:
            pieces.append(ImageSlot(next(pictures)))
        elif part == VIDEO_MARKER and videos:
            pieces += _frame_lines(next(lengths), frames)
        else:
            pieces.append(Text(part))
    return pieces


def _with_markers(text: str, marker: str, expected: int, where: str) -> str:
    found = text.count(marker)
    if found == 0:
        return (marker + "\n") * expected + text
    if found != expected and expected:
        kind = "videos" if marker == VIDEO_MARKER else "pictures"
        raise InvalidRequest(
            f"{where} has {found} {marker} markers for {expected} {kind}: "
            f"write one marker for each, or none to put the {kind} first."
        )
    return text


def _frame_lines(count: int, frames: Iterator[int]) -> list[Piece]:
    pieces: list[Piece] = []
    for number in range(1, count + 1):
        pieces += [Text(f"Frame{number}: "), ImageSlot(next(frames)), Text("\n" if number < count else "")]
    return pieces


def join_text(pieces: Sequence[Piece]) -> list[Piece]:
    """Merge neighbouring texts and drop empty ones, so that the tokenizer sees each span whole."""
    joined: list[Piece] = []
    for are_texts, run in itertools.groupby(pieces, lambda piece: isinstance(piece, Text)):
        if not are_texts:
            joined += run
        elif text := "".join(piece.text for piece in run if isinstance(piece, Text)):
            joined.append(Text(text))
    return joined


def to_string(pieces: Sequence[Piece]) -> str:
    """Return the prompt as people write it: special tokens by name, pictures as `<image>`."""
    return "".join(
        piece.token if isinstance(piece, Special) else piece.text if isinstance(piece, Text) else IMAGE_MARKER
        for piece in pieces
    )
