"""Question: one request of a task, with the key of its answer; ModelAnswer: what a model said to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from PIL import Image

from tilewise.inputs.pieces import IMAGE_MARKER, Message
from tilewise.inputs.prepare import Preparer, TemplateOptions
from tilewise.inputs.templates import Ending
from tilewise.sampling_params import SamplingParams
from tilewise.types import Request, RequestOutput, TokenIds

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
    """Tokens at the end of the prompt whose likelihood is asked for; 0 = an answer is asked for."""

    @property
    def where(self) -> str:
        return f"{self.task}, row {self.row}"

    def request(self, inputs: Preparer) -> Request:
        """Return the request for an engine. Raises what `inputs` raises for a question that cannot be asked."""
        if _is_conversation(self.prompt):
            options = TemplateOptions(thinking=self.thinking, ending=self.ending)
            return inputs.chat(self.prompt, self.pictures, self.sampling, options)
        raw: str | TokenIds = self.prompt  # type: ignore[assignment]  # whatever is no conversation
        return inputs.prompt(raw, self.pictures, self.sampling)

    def key(self) -> str:
        """Return a digest of words, options and pixels, which is the same whatever task the question comes from."""
        asked = replace(self, task="", row=None, pictures=())
        digest = hashlib.sha256(repr(asked).encode())
        for picture in self.pictures:
            # 274 is EXIF's orientation, by which a picture may be turned before it is cut.
            digest.update(repr((picture.mode, picture.size, picture.getpalette(), picture.getexif().get(274))).encode())
            digest.update(picture.tobytes())
        return digest.hexdigest()

    def about(self, pictures: tuple[Image.Image, ...]) -> Question:
        """Return the question with pictures; without any marker, they stand at the start of the last user's turn."""
        if not pictures or not _is_conversation(self.prompt) or any(turn.images for turn in self.prompt):
            return replace(self, pictures=pictures)
        users = [place for place, turn in enumerate(self.prompt) if turn.role == "user"]
        turns = list(self.prompt)
        for place in users[-1:]:
            turns[place] = replace(turns[place], images=len(pictures))
        return replace(self, prompt=tuple(turns), pictures=pictures)

    def with_at_most(self, pictures: int) -> tuple[Question, int]:
        """Return the question with the first of its pictures and as many markers, and how many were left out."""
        left_out = max(0, len(self.pictures) - pictures)
        if not left_out:
            return self, 0
        return replace(self, prompt=keep_markers(self.prompt, pictures), pictures=self.pictures[:pictures]), left_out


def keep_markers(prompt: Prompt, count: int) -> Prompt:
    """Drop all but the first `count` markers of a prompt, and count the pictures of its messages accordingly."""
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
    parts = text.split(IMAGE_MARKER)
    return IMAGE_MARKER.join(parts[: count + 1]) + "".join(parts[count + 1 :])


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """An answer: text and tokens of a generated one, or `logprob` and `greedy` of a continuation that was given."""

    text: str = ""
    token_ids: TokenIds = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    seconds: float = 0.0
    """Seconds from the arrival at the engine to the end; answers run beside each other."""
    logprob: float | None = None
    """Natural logarithm of the likelihood of all tokens of the continuation together."""
    greedy: bool | None = None
    """True if each token of the continuation is the one that the model finds likeliest."""
    problem: str | None = None
    """Reason why there is no answer; None = there is one."""

    @classmethod
    def of(cls, output: RequestOutput, scored: int) -> ModelAnswer:
        """Read an answer off an output: the last `scored` tokens of the prompt, or what was generated if that is 0."""
        if (error := output.outputs[0].error) is not None:
            return cls(problem=str(error))
        said, took = output.outputs[0], (output.usage.prompt_tokens, output.timing.total or 0.0)
        if scored:
            return cls("", (), None, *took, *_score(output, scored))
        return cls(said.text, tuple(said.token_ids), said.finish_reason, *took)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> ModelAnswer:
        return cls(**{**values, "token_ids": tuple(values["token_ids"])})


def _score(output: RequestOutput, scored: int) -> tuple[float, bool]:
    """Return the sum of log-probabilities of the last prompt tokens, and whether each was the likeliest."""
    ids, rows = output.prompt_token_ids[-scored:], (output.prompt_logprobs or [])[-scored:]
    chosen = [row[token] for token, row in zip(ids, rows, strict=True) if row is not None]
    return sum(entry.logprob for entry in chosen), all(entry.rank == 1 for entry in chosen)
