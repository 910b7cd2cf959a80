"""Calls that a request forces: the answer is JSON of a known form, a list of calls or one call's arguments."""

from __future__ import annotations

import json
import re

from tilewise.outputs.tools import CallDelta, ObjectScan

_NEXT = re.compile(r'[\s\[\],}]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


class NamedCall:
    """The whole answer is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        deltas: list[CallDelta] = []
        if text:
            deltas = [CallDelta(0, self._name, text)]
            self._name = None
        return "", deltas

    def finish(self) -> tuple[str, list[CallDelta]]:
        return "", []


class ListedCalls:
    """The answer is a list `[{"name": ..., "arguments": {...}}, ...]`."""

    def __init__(self) -> None:
        self._held = ""
        self._calls = 0
        self._scan: ObjectScan | None = None

    def add(self, text: str) -> tuple[str, list[CallDelta]]:
        self._held += text
        deltas: list[CallDelta] = []
        while self._read(deltas):
            pass
        return "", deltas

    def finish(self) -> tuple[str, list[CallDelta]]:
        return "", []

    def _read(self, deltas: list[CallDelta]) -> bool:
        """Whether there may be more to read."""
        if self._scan is None:
            header = _NEXT.match(self._held)
            if header is None:
                return False
            deltas.append(CallDelta(self._calls, json.loads(header.group(1)), ""))
            self._held, self._scan = self._held[header.end() :], ObjectScan()
        length = self._scan.read(self._held)
        if length:
            deltas.append(CallDelta(self._calls, None, self._held[:length]))
            self._held = self._held[length:]
        if not self._scan.done:
            return False
        self._calls, self._scan = self._calls + 1, None
        return True
