"""Turns a task's `generation_kwargs` into sampling parameters.

Keywords of lm_eval, and those that its tasks have from other backends, mean what they mean there; every other keyword
is one of SamplingParams, or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilewise.errors import InvalidRequest
from tilewise.sampling_params import SamplingParams

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_completion_tokens", "max_tokens")


def sampling_of(words: Mapping[str, Any], longest: int, seed: int) -> SamplingParams:
    """Return sampling parameters: greedy unless the task asks for draws, `longest` tokens unless it names a limit."""
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
