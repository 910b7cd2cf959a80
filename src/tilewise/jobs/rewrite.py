"""An output written anew beside the old one, which it replaces whole or not at all."""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from tilewise.jobs.output import CannotWrite, sync_folder
from tilewise.jobs.result import Result


def without_failed(path: Path) -> None:
    """Lines that failed are gone after this, hence asked again."""
    _replace(path, _succeeded(path))


def in_order(path: Path, lines: int) -> None:
    """The same results, in the order of the input's `lines`. Memory: 8 bytes a line."""
    _replace(path, _sorted(path, lines))


def _succeeded(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for data in file:
            if not Result.read(data).failed:
                yield data


def _sorted(path: Path, lines: int) -> Iterator[bytes]:
    places = array("Q", bytes(8 * lines))
    """Where the result of each line begins, and 1; 0 = it has none."""
    with path.open("rb") as file:
        place = 0
        for data in file:
            places[Result.read(data).number - 1] = place + 1
            place += len(data)
        for begin in filter(None, places):
            file.seek(begin - 1)
            yield file.readline()


def _replace(path: Path, lines: Iterable[bytes]) -> None:
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
