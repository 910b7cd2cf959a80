"""Question: one request of a task, as it is asked and as its answer is found again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TypeGuard

from PIL import Image

from tilewise.inputs.prepare import Preparer
from tilewise.inputs.templates import IMAGE_MARKER, Ending, Message
from tilewise.sampling_params import SamplingParams
from tilewise.types import Request, TokenIds

Prompt = str | TokenIds | tuple[Message, ...]


@dataclass(frozen=True)
class Question:
    """A raw prompt (text with pictures, or ids) or a conversation, with its pictures in order."""

    task: str
    row: int | None
    prompt: Prompt
    sampling: SamplingParams
    pictures: tuple[Image.Image, ...] = ()
    ending: Ending = "open"
    thinking: bool = False
    scored: int = 0
    """Tokens at the end of the prompt whose likelihood is asked for; 0 = an answer is."""

    @property
    def where(self) -> str:
        return f"{self.task}, row {self.row}"

    def request(self, inputs: Preparer) -> Request:
        """Raises what `inputs` raises for one that cannot be asked."""
        if _is_conversation(self.prompt):
            return inputs.chat(self.prompt, self.pictures, self.sampling, thinking=self.thinking, ending=self.ending)
        raw: str | TokenIds = self.prompt  # type: ignore[assignment]  # whatever is no conversation
        return inputs.prompt(raw, self.pictures, self.sampling)

    def key(self) -> str:
        """The same for whatever is asked in the same words about the same pixels, wherever it comes from."""
        asked = replace(self, task="", row=None, pictures=())
        digest = hashlib.sha256(repr(asked).encode())
        for picture in self.pictures:
            digest.update(repr((picture.mode, picture.size, picture.getpalette(), picture.getexif().get(274))).encode())
            digest.update(picture.tobytes())
        return digest.hexdigest()

    def about(self, pictures: tuple[Image.Image, ...]) -> Question:
        """The question with pictures; without a marker for any, they stand at the beginning of the last user's turn."""
        if not pictures or not _is_conversation(self.prompt) or any(turn.images for turn in self.prompt):
            return replace(self, pictures=pictures)
        users = [place for place, turn in enumerate(self.prompt) if turn.role == "user"]
        turns = list(self.prompt)
        for place in users[-1:]:
            turns[place] = replace(turns[place], images=len(pictures))
        return replace(self, prompt=tuple(turns), pictures=pictures)

    def with_at_most(self, pictures: int) -> tuple[Question, int]:
        """The question with the first of its pictures and as many markers, and how many pictures were left out."""
        left_out = max(0, len(self.pictures) - pictures)
        if not left_out:
            return self, 0
        return replace(self, prompt=keep_markers(self.prompt, pictures), pictures=self.pictures[:pictures]), left_out


def keep_markers(prompt: Prompt, count: int) -> Prompt:
    """The first markers of a prompt stay, and the messages that keep some bring as many pictures."""
    if isinstance(prompt, str):
        return _keep_in_text(prompt, count)
    if not _is_conversation(prompt):
        return prompt
    turns: list[Message] = []
    for turn in prompt:
        kept = min(count, turn.images)
        text = _keep_in_text(turn.text, kept) if turn.images else turn.text
        turns.append(replace(turn, text=text, images=kept))
        count -= kept
    return tuple(turns)


def _is_conversation(prompt: Prompt) -> TypeGuard[tuple[Message, ...]]:
    return isinstance(prompt, tuple) and bool(prompt) and isinstance(prompt[0], Message)


def _keep_in_text(text: str, count: int) -> str:
    head, *tail = text.split(IMAGE_MARKER)
    return head + "".join((IMAGE_MARKER if place < count else "") + part for place, part in enumerate(tail))
