"""A line of the input as a request to one of the server's routes, or what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tilewise.errors import did_you_mean
from tilewise.jobs.source import Line

_KEYS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked, and by which name its asker knows it."""

    custom_id: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line is not asked."""

    custom_id: str | None
    code: str
    message: str


def read_task(line: Line, paths: Collection[str], limit: int) -> Task | Fault:
    """`paths` are the routes that answer, `limit` is that of a line."""
    if line.data is None:
        shorter = "send smaller pictures, or URLs instead, or raise --max-body-mb"
        return Fault(
            None, "line_too_long", f"Line {line.place} has {line.size} bytes, the limit is {limit}: {shorter}."
        )
    try:
        found = json.loads(line.data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Fault(None, "invalid_json_line", f"Line {line.place} is not valid JSON: {error}.")
    if not isinstance(found, dict):
        return Fault(None, "invalid_json_line", f"Line {line.place} must be a JSON object with {', '.join(_KEYS)}.")
    return _task(line.place, found, paths)


def _task(number: int, found: dict[str, Any], paths: Collection[str]) -> Task | Fault:
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return Fault(None, "invalid_custom_id", _must_be(number, found, "custom_id", "a text that is not empty"))
    if found.get("method") != "POST":
        return Fault(custom_id, "invalid_method", _must_be(number, found, "method", '"POST"'))
    url, body = found.get("url"), found.get("body")
    if url not in paths:
        near = did_you_mean(str(url), paths)
        return Fault(custom_id, "invalid_url", _must_be(number, found, "url", f"one of {', '.join(paths)}") + near)
    if not isinstance(body, dict):
        return Fault(custom_id, "invalid_body", _must_be(number, found, "body", "an object"))
    if body.get("stream") not in (None, False):
        return Fault(custom_id, "stream_not_possible", _must_be(number, body, "stream", "false: a file has no stream"))
    return Task(custom_id, str(url), json.dumps(body).encode())


def _must_be(number: int, found: dict[str, Any], key: str, wanted: str) -> str:
    got = f"got {found[key]!r:.80}" if key in found else f"it is missing.{did_you_mean(key, found)}"
    return f"Line {number}: {key} must be {wanted}; {got.removesuffix('.')}."
