"""Rendering an untrusted Jinja template, bounded in time and memory: in a process of its own.

Jinja's sandbox keeps a template away from Python's insides, but not from looping or growing without end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_SECONDS = 3  # of computing; real templates take milliseconds
_WALL_SECONDS = 30.0  # for a machine that is too busy to let it compute


def render_all(
    template: str, conversations: Sequence[list[dict[str, Any]]], tokens: dict[str, str]
) -> list[dict[str, str]]:
    """For each conversation `{"text": prompt}`, or `{"error": why there is none}`: a bad template never raises.

    `tokens` are the special tokens that templates may name (`bos_token` ...).
    """
    job = {"template": template, "conversations": list(conversations), "tokens": tokens, "seconds": _SECONDS}
    # -P: the folder it is called from is no place to import from.
    command = [sys.executable, "-P", "-m", "tilewise.inputs.sandbox_process"]
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=none) as process:
        try:
            output, _ = process.communicate(json.dumps(job).encode(), timeout=_WALL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    results = [json.loads(line) for line in output.split(b"\n")[:-1]]  # the last line may be cut short
    missing = {"error": f"it did not end within {_SECONDS} seconds of computing, or broke the process that renders it"}
    return [*results, *[missing] * (len(conversations) - len(results))]
