"""SampleRequest: what one request of a benchmark asks, whoever is asked."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or video of a request, as a URL: of its bytes, or of where it is."""

    kind: Literal["image", "video"]
    url: str

    @classmethod
    def of(cls, kind: Literal["image", "video"], content: bytes, mime: str) -> Media:
        return cls(kind, f"data:{mime};base64,{base64.b64encode(content).decode()}")

    @property
    def part(self) -> dict[str, Any]:
        """As a message has it."""
        return {"type": f"{self.kind}_url", f"{self.kind}_url": {"url": self.url}}


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One request. `messages` are a conversation that the data set has whole; else a user says `prompt`."""

    prompt: str
    prompt_tokens: int | None
    """Of the text; None where there is no tokenizer to count with."""
    output_tokens: int | None
    """Wanted; None = as many as the model gives."""
    media: tuple[Media, ...] = ()
    messages: tuple[dict[str, Any], ...] | None = None

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """As chat takes it: media behind the text, as vLLM places them."""
        if self.messages is not None:
            return list(self.messages)
        text = {"type": "text", "text": self.prompt}
        return [{"role": "user", "content": [text, *(item.part for item in self.media)]}]
