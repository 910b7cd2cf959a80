"""Prompts of lm_eval's requests: dialogues, the tokens that are scored, and sampling parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tilewise.errors import InvalidRequest
from tilewise.inputs.pieces import IMAGE_MARKER, Message, to_string
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.templates import Ending, Template
from tilewise.sampling_params import SamplingParams
from tilewise.types import TokenIds


class Dialogue(str):
    """The text of a prompt, rendered with the model's own template, with the messages that it was made of.

    lm_eval sees the text. The engine gets the messages, so that what looks like a control token in a question stays
    text, as in every conversation, and pictures have their places.
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
    return tuple(inputs.spec.started(inputs.tokenizer.encode_raw(text)))


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


LENGTHS = ("max_gen_toks", "max_new_tokens", "max_completion_tokens", "max_tokens")


def sampling_of(words: Mapping[str, Any], longest: int, seed: int) -> SamplingParams:
    """Return the sampling parameters of a task's `generation_kwargs`.

    They are greedy unless the task asks for draws, and of `longest` tokens unless it names a limit. Keywords of
    lm_eval, and those that its tasks have from other backends, mean what they mean there; every other keyword is one
    of SamplingParams, or is refused.
    """
    rest = dict(words)
    lengths = [rest.pop(name) for name in LENGTHS if name in rest]
    until = _texts(rest.pop("until", None))
    drawn = rest.pop("do_sample", None)
    heat = rest.pop("temperature", None)
    temperature = 0.0 if drawn is False or (heat is None and not drawn) else 1.0 if heat is None else float(heat)
    if temperature:
        rest.setdefault("seed", seed)
    return SamplingParams(
        max_tokens=int(lengths[0]) if lengths else longest, temperature=temperature, stop=until or None, **rest
    )


def _texts(until: Any) -> list[str]:
    """Return the stop strings that are not empty; an empty one would stop before anything was said."""
    texts = [until] if isinstance(until, str) else list(until or [])
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"until must be a text or a list of texts, got {until!r:.80}.")
    return [text for text in texts if text]


def behind_reasoning(text: str) -> str:
    """Return the answer behind `</think>`; an empty text if the reasoning was cut short."""
    _, mark, answer = text.rpartition("</think>")
    return answer.lstrip() if mark else "" if text.lstrip().startswith("<think>") else text
