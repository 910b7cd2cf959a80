"""Rendering an untrusted Jinja template, bounded in time and memory: in a process of its own.

Jinja's sandbox keeps a template away from Python's insides, but not from looping or growing without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewise.inputs.confined import run

_SECONDS = 3  # of computing; real templates take milliseconds


def render_all(
    template: str, conversations: Sequence[list[dict[str, Any]]], tokens: dict[str, str]
) -> list[dict[str, str]]:
    """For each conversation `{"text": prompt}`, or `{"error": why there is none}`: a bad template never raises.

    `tokens` are the special tokens that templates may name (`bos_token` ...).
    """
    job = {"template": template, "conversations": list(conversations), "tokens": tokens, "seconds": _SECONDS}
    results = run("tilewise.inputs.sandbox_process", job)
    missing = {"error": f"it did not end within {_SECONDS} seconds of computing, or broke the process that renders it"}
    return [*results, *[missing] * (len(conversations) - len(results))]
