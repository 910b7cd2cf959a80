"""Conversation templates of each InternVL generation: messages in, one prompt out.

The strings are those the models were trained with (OpenGVLab/InternVL, `internvl/conversation.py`). They are
built in because the Jinja files of several checkpoints differ from the training prompt: some carry another
model's system text, some none. A prompt is a list of pieces, so that a caller's text never meets the
tokenizer's special tokens: only `Special` becomes one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tilewise.errors import InvalidRequest
from tilewise.inputs import tool_text
from tilewise.inputs.system_texts import SYSTEM_GPT_OSS, SYSTEM_INTERNVL2, SYSTEM_INTERNVL2_5, SYSTEM_THINKING

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
Ending = Literal["open", "continue", "end"]
"""Behind the last message: the model's turn begins; that message goes on; nothing."""
MARKS = ("<think>", "</think>", *tool_text.MARKS)
"""Words of templates that are tokens in some vocabularies and characters in others."""
IMAGE_MARKER = "<image>"
VIDEO_MARKER = "<video>"
_MARKERS = re.compile(f"({IMAGE_MARKER}|{VIDEO_MARKER})")


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
    """Where picture (or video frame) number `index` of the prompt stands."""

    index: int


Piece = Special | Text | ImageSlot


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a prompt: what it is for, in which turn and whose, and its pieces, not joined yet."""

    kind: Literal["header", "body", "closing", "opening"]
    turn: int
    role: Role
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Its text may hold `<image>` and `<video>` markers; `images` and `videos` say how many it brings."""

    role: Role | Literal["tool"]
    """What a tool gave back stands in a turn of the user."""
    text: str
    images: int = 0
    videos: tuple[int, ...] = ()  # frames of each video
    calls: tuple[str, ...] = ()
    """Tool calls of the assistant, each a JSON text."""

    def body(self, first: int) -> list[Piece]:
        """The text with its media in place; only users show pictures, so what others say is text alone."""
        if self.role != "user":
            return [Text(self.text)]
        return place_media(self.text, self.images, self.videos, first, "The user message")


@dataclass(frozen=True, slots=True)
class Header:
    """Answers come as messages with headers: from one of `starts` to `end`, what the model writes is not its text."""

    starts: tuple[str, ...]
    end: str


@dataclass(frozen=True)
class Template:
    """A conversation template. `{}` in a turn's form stands for its text; special tokens are written out."""

    name: str
    system: str
    turns: dict[Role, str]
    opening: str  # what makes the model speak
    stop_tokens: tuple[str, ...]
    thinking: str | None = None
    """System text that asks for reasoning; None = no model of this template was trained to reason."""
    header: Header | None = None
    tools: bool = False
    """Whether it has a form for tools."""
    special: re.Pattern[str] = field(default=re.compile(r"<\|[a-z_]+\|>"), repr=False)

    def with_marks(self, marks: Iterable[str]) -> Template:
        """The template for a vocabulary in which these words of it are tokens."""
        pattern = "|".join([self.special.pattern, *map(re.escape, marks)])
        return replace(self, special=re.compile(pattern))

    def render(
        self, messages: Sequence[Message], thinking: bool = False, tools: Sequence[str] = (), ending: Ending = "open"
    ) -> list[Piece]:
        """The prompt for `messages`. A first message of role system replaces the built-in text; empty = none.

        `tools` are definitions of functions, each a JSON text.
        """
        return join_text([piece for part in self.parts(messages, thinking, tools, ending) for piece in part.pieces])

    def parts(
        self, messages: Sequence[Message], thinking: bool = False, tools: Sequence[str] = (), ending: Ending = "open"
    ) -> list[Part]:
        """The prompt that `render` joins, part by part; the system message, if there is one, is turn 0."""
        turns = list(messages)
        system = self._literal(self._thinking_text() if thinking else self.system)
        if turns and turns[0].role == "system":
            system = [Text(turns.pop(0).text)]
        system = join_text([*system, *self._tool_section(tools, after=system)])
        bodies: list[tuple[Role, list[Piece]]] = [("system", system)] if system else []
        bodies += self._bodies(turns)
        parts = [part for turn, (role, body) in enumerate(bodies) for part in self._turn(turn, role, body)]
        if ending == "open":
            return [*parts, Part("opening", len(bodies), "assistant", self._literal(self.opening))]
        return parts[:-1] if ending == "continue" else parts

    def _bodies(self, turns: Sequence[Message]) -> Iterator[tuple[Role, list[Piece]]]:
        next_image = 0
        for role, group in itertools.groupby(turns, lambda message: message.role):
            if role == "tool":  # all results up to the next turn
                yield "user", self._marked(tool_text.RESULT, [message.text for message in group])
                continue
            for message in group:
                calls = self._marked(tool_text.CALL, message.calls, before="\n" if message.text else "")
                yield role, [*message.body(next_image), *calls]
                next_image += message.images + sum(message.videos)

    def _tool_section(self, tools: Sequence[str], after: Sequence[Piece]) -> list[Piece]:
        if not tools:
            return []
        self._check_tools()
        before, behind = tool_text.SECTION.split("{}")
        gap = "\n\n" if join_text(after) else ""
        return [Text(gap), *self._literal(before), Text("\n".join(tools)), *self._literal(behind)]

    def _marked(self, form: str, texts: Sequence[str], before: str = "") -> list[Piece]:
        """Each text in a form of tools, one a line; the texts are the caller's or the model's."""
        if not texts:
            return []
        self._check_tools()
        start, end = map(self._literal, form.split("{}"))
        lines = [[*start, Text(text), *end, Text("\n")] for text in texts]
        return [Text(before), *itertools.chain(*lines)][:-1]

    def _check_tools(self) -> None:
        if not self.tools:
            raise InvalidRequest(f"The template {self.name} has no form for tools: leave out tools, calls and results.")

    def _thinking_text(self) -> str:
        if self.thinking is None:
            raise InvalidRequest(
                f"The template {self.name} has no thinking mode, which InternVL3.5 on Qwen3 has: leave it off."
            )
        return self.thinking

    def _turn(self, turn: int, role: Role, body: list[Piece]) -> list[Part]:
        before, after = map(self._literal, self.turns[role].split("{}"))
        return [Part("header", turn, role, before), Part("body", turn, role, body), Part("closing", turn, role, after)]

    def _literal(self, text: str) -> list[Piece]:
        """Template text cut at the special tokens it names."""
        pieces: list[Piece] = []
        position = 0
        for match in self.special.finditer(text):
            pieces += [Text(text[position : match.start()]), Special(match.group())]
            position = match.end()
        return [*pieces, Text(text[position:])]


def place_media(text: str, images: int, videos: Sequence[int], first: int, where: str) -> list[Piece]:
    """Replace the markers in a text by image slots; media without markers go first, pictures before videos.

    `videos` are the frames of each video. Slots are numbered from `first`: the pictures, then the frames. A video of
    n frames becomes n lines `Frame1: <image>`. Raises InvalidRequest, naming `where`, when markers and media differ.
    """
    text = _with_markers(text, VIDEO_MARKER, len(videos), where)
    text = _with_markers(text, IMAGE_MARKER, images, where)
    pictures, frames, lengths = itertools.count(first), itertools.count(first + images), iter(videos)
    pieces: list[Piece] = []
    for part in _MARKERS.split(text):
        if part == IMAGE_MARKER:
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
    # Only InternVL's own marker is always meant as one; `<video>` without a video may be talk about HTML.
    if found != expected and not (marker == VIDEO_MARKER and expected == 0):
        kind = "pictures" if marker == IMAGE_MARKER else "videos"
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
    for piece in pieces:
        if isinstance(piece, Text):
            if not piece.text:
                continue
            if joined and isinstance(joined[-1], Text):
                joined[-1] = Text(joined[-1].text + piece.text)
                continue
        joined.append(piece)
    return joined


def to_string(pieces: Sequence[Piece]) -> str:
    """The prompt as people write it: special tokens by name, pictures as `<image>`."""
    return "".join(
        piece.token if isinstance(piece, Special) else piece.text if isinstance(piece, Text) else IMAGE_MARKER
        for piece in pieces
    )


def _chatml(
    name: str,
    system: str,
    after_turn: str = "",
    stop: tuple[str, ...] = ("<|im_end|>",),
    thinking: str | None = None,
) -> Template:
    turns: dict[Role, str] = {role: f"<|im_start|>{role}\n{{}}<|im_end|>{after_turn}" for role in ROLES}
    return Template(name, system, turns, "<|im_start|>assistant\n", stop, thinking, tools=True)


_PHI3 = Template(
    "phi3-chat",
    SYSTEM_INTERNVL2,
    turns={role: f"<|{role}|>\n{{}}<|end|>" for role in ROLES},
    opening="<|assistant|>\n",
    stop_tokens=("<|end|>",),
)
_GPT_OSS = Template(
    "internvl3_5_gpt_oss",
    SYSTEM_GPT_OSS,
    turns={
        "system": "<|start|>system<|message|>{}<|end|>",
        "user": "<|start|>user<|message|>{}<|end|>",
        "assistant": "<|start|>assistant<|channel|>final<|message|>{}<|end|>",
    },
    opening="<|start|>assistant",
    stop_tokens=("<|return|>",),
    header=Header(starts=("<|start|>", "<|channel|>"), end="<|message|>"),
)
TEMPLATES = {
    template.name: template
    for template in (
        _chatml("Hermes-2", SYSTEM_INTERNVL2, stop=("<|im_end|>", "<|endoftext|>")),
        _chatml("internlm2-chat", SYSTEM_INTERNVL2),
        _PHI3,
        _chatml("internvl2_5", SYSTEM_INTERNVL2_5, after_turn="\n", thinking=SYSTEM_THINKING),
        _GPT_OSS,
    )
}
