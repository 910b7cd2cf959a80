"""What earlier runs left in the output: which lines are done, and perhaps one that they could not finish writing."""

from __future__ import annotations

import json
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from tilewise.errors import TilewiseError
from tilewise.jobs.result import PREFIX, Result
from tilewise.jobs.tally import Tally


class OtherInput(TilewiseError):
    """The output holds something else than results of this input."""


@dataclass
class Found:
    """`finished` has a byte for each line of the input, 1 = its result is there."""

    finished: bytearray
    tally: Tally = field(default_factory=Tally)
    torn: int = 0
    """Bytes of a broken last line, which were cut off."""
    in_order: bool = True
    _last: int = 0

    def add(self, result: Result) -> None:
        """A result that is there."""
        self.finished[result.number - 1] = 1
        self.tally.add(result)
        self.in_order, self._last = self.in_order and result.number > self._last, result.number


def scan(path: Path, digests: array[int]) -> Found:
    """`digests` are those of the input's lines. Raises OtherInput, and then nothing was changed."""
    found = Found(bytearray(len(digests)))
    if not path.exists():
        return found
    start, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if start + len(data) == size and _is_torn(data):
                found.torn = len(data)
                break
            found.add(_result(data, f"{path}, line {number}", digests, found.finished))
            start += len(data)
    if found.torn:
        cut(path, start)
    return found


def _is_torn(data: bytes) -> bool:
    """Whether a last line is the beginning of one of ours, or what a disk that lost its power makes of it."""
    if not data.strip(b"\0\n"):
        return b"\0" in data
    if not PREFIX.startswith(data[: len(PREFIX)]):
        return False
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return True
    return not data.endswith(b"\n")


def _result(data: bytes, where: str, digests: array[int], finished: bytearray) -> Result:
    try:
        result = Result.read(data)
    except ValueError as error:
        raise OtherInput(f"{where} is not a result of a batch run ({error}): name another output.") from None
    number = result.number
    if number > len(digests) or result.digest != digests[number - 1]:
        raise OtherInput(
            f"{where} answers another request {number} than the input has (of {len(digests)}): the output belongs to "
            "another input, or the input has changed. Name another output."
        )
    if finished[number - 1]:
        raise OtherInput(f"{where} answers request {number} of the input once more: a run answers each line once.")
    return result


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
