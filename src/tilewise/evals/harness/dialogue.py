"""Dialogue: a chat history of lm_eval, rendered with the model's own template, and what of a prompt is scored.

To lm_eval it is the text of the prompt. To us it is still the messages, so that what looks like a special token in a
user's text stays text, and pictures have their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tilewise.errors import InvalidRequest
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.templates import IMAGE_MARKER, Ending, Message, Template, to_string
from tilewise.types import TokenIds


class Dialogue(str):
    """The text of a prompt, with the messages that it was made of.

    lm_eval sees the text. The engine gets the messages, so that what looks like a control token in a question stays
    text, as in every conversation.
    """

    messages: tuple[Message, ...]
    ending: Ending

    @classmethod
    def of(
        cls, history: Sequence[Mapping[str, Any]], template: Template, answer_next: bool, thinking: bool
    ) -> Dialogue:
        """Render a conversation; `answer_next`: the model's turn begins after the last message, else that goes on."""
        messages = tuple(map(_message, history))
        ending: Ending = "open" if answer_next else "continue"
        dialogue = cls(to_string(template.render(messages, thinking, ending=ending)))
        dialogue.messages, dialogue.ending = messages, ending
        return dialogue

    def followed_by(self, continuation: str) -> tuple[Message, ...]:
        """Return the messages with `continuation` as the model's words, after those that it has begun with."""
        if self.ending == "continue":
            *before, begun = self.messages
            return (*before, Message(begun.role, begun.text + continuation))
        return (*self.messages, Message("assistant", continuation))


def _message(turn: Mapping[str, Any]) -> Message:
    role, text = turn.get("role"), turn.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(text, str):
        raise InvalidRequest(f"A turn of a task must have a role and a text, got {dict(turn)!r:.120}.")
    return Message(role, text, images=text.count(IMAGE_MARKER) if role == "user" else 0)


def raw_ids(inputs: Preparer, text: str) -> TokenIds:
    """Return the tokens of a raw prompt: special tokens count as such, and the model's start token, if any, leads."""
    ids = inputs.tokenizer.encode_raw(text)
    start = inputs.spec.start_id
    return tuple(ids if start is None or ids[:1] == [start] else [start, *ids])


def before_everything(inputs: Preparer) -> int:
    """Return the token that stands before a text without context: start token, `<|endoftext|>` or an end token."""
    named = inputs.spec.start_id, inputs.tokenizer.find_id("<|endoftext|>")
    return next((token for token in named if token is not None), min(inputs.spec.end_ids))


def behind_text(inputs: Preparer, context: str, continuation: str) -> tuple[TokenIds, int]:
    """Return the tokens of context and continuation together, and how many of them are the continuation's.

    Blanks at the end of the context count as the continuation's, as a token of a text begins with the blank before it.
    """
    if not context:
        whole = tuple(inputs.tokenizer.encode_raw(continuation))
        return (before_everything(inputs), *whole), len(whole)
    kept = context.rstrip()
    whole = raw_ids(inputs, context + continuation)
    return whole, len(whole) - len(raw_ids(inputs, kept))


def behind_messages(inputs: Preparer, begun: Sequence[Message], said: Sequence[Message]) -> int:
    """Return how many tokens more the conversation `said` has than `begun`; in both, the last message goes on."""
    template = inputs.spec.template
    first, second = (len(inputs.chat_ids(template.render(turns, ending="continue"))) for turns in (begun, said))
    return second - first


def windows(ids: TokenIds, before: int, longest: int) -> Iterator[tuple[TokenIds, int]]:
    """Yield prompts of at most `longest` tokens that together score every token once, with as much context as fits.

    With each comes how many tokens at its end are scored. The token `before` stands before the first one.
    """
    for first in range(0, len(ids), longest - 1):
        scored = ids[first : first + longest - 1]
        # In (before, *ids), index i holds the token before ids[i]. So the context ends right before the first token
        # that is scored, and begins where the whole prompt has `longest` tokens.
        context = (before, *ids)[max(0, first + 1 + len(scored) - longest) : first + 1]
        yield (*context, *scored), len(scored)
