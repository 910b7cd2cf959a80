"""Dialogue: a chat history of lm_eval, rendered with the model's own template.

To lm_eval it is the text of the prompt. To us it is still the messages, so that what looks like a control token in a
question stays text, as in every conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilewise.errors import InvalidRequest
from tilewise.inputs.templates import IMAGE_MARKER, Ending, Message, Template, to_string


class Dialogue(str):
    """The prompt as people write it, with the messages that it was made of."""

    messages: tuple[Message, ...]
    ending: Ending

    @classmethod
    def of(
        cls, history: Sequence[Mapping[str, Any]], template: Template, answer_next: bool, thinking: bool
    ) -> Dialogue:
        """`answer_next`: the model's turn begins behind the last message, which else goes on."""
        messages = tuple(map(_message, history))
        ending: Ending = "open" if answer_next else "continue"
        dialogue = cls(to_string(template.render(messages, thinking, ending=ending)))
        dialogue.messages, dialogue.ending = messages, ending
        return dialogue

    def followed_by(self, continuation: str) -> tuple[Message, ...]:
        """The messages with this as the model's words, behind those that it has begun with."""
        if self.ending == "continue":
            *before, begun = self.messages
            return (*before, Message(begun.role, begun.text + continuation))
        return (*self.messages, Message("assistant", continuation))


def _message(turn: Mapping[str, Any]) -> Message:
    role, text = turn.get("role"), turn.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(text, str):
        raise InvalidRequest(f"A turn of a task must have a role and a text, got {dict(turn)!r:.120}.")
    return Message(role, text, images=text.count(IMAGE_MARKER) if role == "user" else 0)
