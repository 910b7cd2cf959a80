"""How much of a prompt is the continuation whose likelihood is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tilewise.inputs.prepare import Preparer
from tilewise.inputs.templates import Message
from tilewise.types import TokenIds


def raw_ids(inputs: Preparer, text: str) -> TokenIds:
    """A text as a raw prompt: special tokens are meant, and it begins with the start token, if the model has one."""
    ids = inputs.tokenizer.encode_raw(text)
    start = inputs.spec.start_id
    return tuple(ids if start is None or ids[:1] == [start] else [start, *ids])


def before_everything(inputs: Preparer) -> int:
    """The token behind which a text without context stands."""
    named = inputs.spec.start_id, inputs.tokenizer.find_id("<|endoftext|>")
    return next((token for token in named if token is not None), min(inputs.spec.end_ids))


def behind_text(inputs: Preparer, context: str, continuation: str) -> tuple[TokenIds, int]:
    """Ids of both together, and how many of them are the continuation's.

    Blanks at the end of the context belong to the continuation, as the tokens of a whole text begin with theirs.
    """
    if not context:
        whole = tuple(inputs.tokenizer.encode_raw(continuation))
        return (before_everything(inputs), *whole), len(whole)
    kept = context.rstrip()
    whole = raw_ids(inputs, context + continuation)
    return whole, len(whole) - len(raw_ids(inputs, kept))


def behind_messages(inputs: Preparer, begun: Sequence[Message], said: Sequence[Message]) -> int:
    """How many tokens more the conversation `said` has than `begun`, in both of which the last message goes on."""
    template = inputs.spec.template
    first, second = (len(inputs.chat_ids(template.render(turns, ending="continue"))) for turns in (begun, said))
    return second - first


def windows(ids: TokenIds, before: int, longest: int) -> Iterator[tuple[TokenIds, int]]:
    """Prompts of at most `longest` tokens that score every token once, each with as much before it as fits.

    The second part of each says how many tokens at its end are scored. The first token stands behind `before`.
    """
    for first in range(0, len(ids), longest - 1):
        scored = ids[first : first + longest - 1]
        context = (before, *ids)[max(0, first + 1 + len(scored) - longest) : first + 1]
        yield (*context, *scored), len(scored)
