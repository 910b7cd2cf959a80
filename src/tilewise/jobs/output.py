"""The output of a run: results in the form of OpenAI's batches, a line each.

The file is appended to by whole lines, read for results of earlier runs, and replaced in one step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tilewise.errors import InvalidConfig, TilewiseError
from tilewise.jobs.input import Fault, InputLine, Task, result_id
from tilewise.jobs.progress import Summary

_PREFIX = b'{"id": "batch_req_'
_ID = re.compile(r"batch_req_([1-9]\d{0,18})_([0-9a-f]{16})", re.ASCII)


@dataclass(frozen=True)
class BatchResult:
    """A line's result: the server's `response`, whatever its status, or an `error` if it was not asked; one is None."""

    number: int
    """Number of the input's line, from 1, blank lines not counted."""
    digest: int
    """64-bit digest of the input's line."""
    custom_id: str | None
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @classmethod
    def answered(cls, line: InputLine, task: Task, status: int, request_id: str, body: Any) -> BatchResult:
        response = {"status_code": status, "request_id": request_id, "body": body}
        return cls(line.number, line.digest, task.custom_id, response)

    @classmethod
    def not_asked(cls, line: InputLine, fault: Fault) -> BatchResult:
        error = {"code": fault.code, "message": fault.message}
        return cls(line.number, line.digest, fault.custom_id, error=error)

    @classmethod
    def read(cls, data: bytes) -> BatchResult:
        """Read a line of the output. Raises ValueError for what this program has not written whole."""
        try:
            found = json.loads(data)
            name = _ID.fullmatch(found["id"])
            response, error = found["response"], found["error"]
            if name is None or (response is None) is (error is None):
                raise ValueError(f"{found['id']!r:.80} is no id of a result")
            whole = cls(int(name[1]), int(name[2], 16), found["custom_id"], response, error)
            _ = whole.outcome, whole.failed, sum(whole.tokens)  # raise here, where something that they read is missing
        except (KeyError, TypeError, AttributeError, RecursionError) as failure:
            raise ValueError(f"no result: {failure}") from None
        return whole

    @cached_property
    def line(self) -> bytes:
        found = {
            "id": result_id(self.number, self.digest),
            "custom_id": self.custom_id,
            "response": self.response,
            "error": self.error,
        }
        try:
            return json.dumps(found, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair in a custom_id, which only an escape can carry
            return json.dumps(found).encode() + b"\n"

    @property
    def outcome(self) -> str:
        """HTTP status of the response, or the code of the error."""
        return str(self.response["status_code"] if self.response is not None else (self.error or {})["code"])

    @property
    def failed(self) -> bool:
        return self.response is None or self.response["status_code"] >= 400

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer, 0 where the response does not say."""
        body = self.response["body"] if self.response is not None else None
        usage = (body.get("usage") if isinstance(body, dict) else None) or {}
        asked = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        return asked, usage.get("completion_tokens", usage.get("output_tokens", 0))


class CannotWrite(TilewiseError):
    """The output takes no more: no space, a limit, a disk that fails."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> CannotWrite:
        return cls(f"{path} cannot be written: {error.strerror or error}.")


class Output:
    """The output file, opened to append.

    Each line goes to the operating system at once, so that none is lost when this process ends; the disk has it after
    `sync`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            sync_folder(path.parent)
        except OSError as error:
            raise CannotWrite.of(path, error) from None
        self._end = os.fstat(self._file).st_size
        self._synced = self._end

    def append(self, line: bytes) -> None:
        """Append a line. Raises CannotWrite, and then leaves no part of the line behind."""
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise CannotWrite.of(self.path, error) from None
        self._end += len(line)

    def sync(self) -> None:
        """Bring all that was appended before to the disk. Raises CannotWrite."""
        # Read before fsync, which runs in a thread: lines that are appended meanwhile may not be on the disk yet.
        end = self._end
        if self._synced == end:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            raise CannotWrite.of(self.path, error) from None
        self._synced = end

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Hold the output's lock, which ends with the process at the latest. Raises InvalidConfig if another run has it."""
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InvalidConfig(
            f"output_file: another run writes {path} (it holds {lock.lock_file}): wait for it, or name another file."
        ) from None
    except OSError as error:
        raise CannotWrite.of(Path(lock.lock_file), error) from None
    try:
        yield
    finally:
        lock.release()


def sync_folder(path: Path) -> None:
    """Bring the names of a folder's files to the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class OtherInput(TilewiseError):
    """The output holds something else than results of this input, or the input has changed since the run began."""


@dataclass
class Found:
    """The results that an output holds; `finished` has a byte for each line of the input, 1 = its result is there."""

    finished: bytearray
    summary: Summary = field(default_factory=Summary)
    torn: int = 0
    """Bytes of a broken last line, which were cut off."""
    in_order: bool = True
    """True if the results stand in the order of the input."""
    _last: int = 0

    def add(self, result: BatchResult) -> None:
        """Count a result that is in the output."""
        self.finished[result.number - 1] = 1
        self.summary.add(result)
        self.in_order, self._last = self.in_order and result.number > self._last, result.number


def scan(path: Path, digests: array[int]) -> Found:
    """Read what earlier runs left, and cut off a broken last line.

    `digests` are those of the input's lines. Raises OtherInput, and then nothing was changed.
    """
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
    """Return whether a last line is the beginning of a result, or the zeros that a loss of power leaves of one."""
    if not data.strip(b"\0\n"):
        return b"\0" in data
    if not _PREFIX.startswith(data[: len(_PREFIX)]):
        return False
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return True
    return not data.endswith(b"\n")


def _result(data: bytes, where: str, digests: array[int], finished: bytearray) -> BatchResult:
    try:
        result = BatchResult.read(data)
    except ValueError as error:
        raise OtherInput(f"{where} is not a result of a batch run ({error}): name another output.") from None
    number = result.number
    if number > len(digests) or result.digest != digests[number - 1]:
        raise OtherInput(
            f"{where} answers a request {number}, and request {number} of the input ({len(digests)} lines) is another: "
            "the output belongs to another input, or the input has changed. Name another output."
        )
    if finished[number - 1]:
        raise OtherInput(f"{where} answers request {number} of the input once more: a run answers each line once.")
    return result


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def without_failed(path: Path) -> None:
    """Rewrite the output without the lines that failed, so that they are asked again."""
    _replace(path, _succeeded(path))


def sort_output(path: Path, lines: int) -> None:
    """Rewrite the output in the order of the input, which has `lines` lines. Takes 8 bytes of memory a line."""
    _replace(path, _sorted(path, lines))


def _succeeded(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for data in file:
            if not BatchResult.read(data).failed:
                yield data


def _sorted(path: Path, lines: int) -> Iterator[bytes]:
    # The byte at which the result of each line begins, plus 1, as 0 says that a line has no result.
    places = array("Q", bytes(8 * lines))
    with path.open("rb") as file:
        place = 0
        for data in file:
            places[BatchResult.read(data).number - 1] = place + 1
            place += len(data)
        for begin in filter(None, places):
            file.seek(begin - 1)
            yield file.readline()


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    # The new file is whole on the disk before it takes the name of the old one, so a crash leaves either of them.
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(path, new)
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise CannotWrite.of(new, error) from None
