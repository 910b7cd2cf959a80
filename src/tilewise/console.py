"""The output of a process at a terminal: log lines, and progress bars where a person looks.

Lines have vLLM's form, which scripts look for: `(APIServer pid=7) INFO 12-05 08:42:13 [loggers.py:127] text`. Each line
of a message bears the prefix, so that a text with line breaks cannot pass for a line of the log. Passwords in addresses
are left out, and the queries of paths that were asked for, where clients may have put a key.
"""

from __future__ import annotations

import logging
import logging.config
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tilewise.errors import InvalidConfig, did_you_mean

_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s@]+@")
_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")


def without_credentials(text: str) -> str:
    """Return a text without the user and password of any address in it.

    >>> without_credentials("http://me:secret@proxy:3128 refuses")
    'http://***@proxy:3128 refuses'
    """
    return _CREDENTIALS.sub("***@", text)


class EngineFormatter(logging.Formatter):
    """A formatter of lines as vLLM's. `process` is the part that a process plays: APIServer, EngineCore_DP0 ..."""

    def __init__(self, process: str) -> None:
        super().__init__(datefmt="%m-%d %H:%M:%S")
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        where = f"[{record.filename}:{record.lineno}]" if hasattr(record, "filename") else ""
        start = f"({self._process} pid={os.getpid()}) {record.levelname} {self.formatTime(record, self.datefmt)}"
        return _prefixed(f"{start} {where} ", self._text(record))

    def _text(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return without_credentials(f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text)


class HttpFormatter(EngineFormatter):
    """A formatter of the HTTP library's own lines: `INFO:     Started server process [2736]`."""

    def format(self, record: logging.LogRecord) -> str:
        name = f"{record.levelname}:"
        return _prefixed(f"({self._process} pid={os.getpid()}) {name:<9} ", self._text(record) + _phrase(record))


class AccessPaths(logging.Filter):
    """A filter that drops access lines of some paths, and the queries of all.

    An access record's third argument is the path with its query.
    """

    def __init__(self, quiet: Collection[str]) -> None:
        super().__init__()
        self._quiet = frozenset(quiet)

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.args, tuple) or len(record.args) < 3:
            return True
        path = str(record.args[2]).partition("?")[0]
        record.args = (*record.args[:2], path, *record.args[3:])
        return path not in self._quiet


def set_up_logs(process: str, level: str = "INFO") -> None:
    """Send our lines, and warnings of libraries, to standard error. `level` is that of VLLM_LOGGING_LEVEL."""
    level = level.upper()
    if level not in _LEVELS:
        raise InvalidConfig(
            f"VLLM_LOGGING_LEVEL must be one of {', '.join(_LEVELS)}, got {level!r}.{did_you_mean(level, _LEVELS)}"
        )
    handler = logging.StreamHandler()
    handler.setFormatter(EngineFormatter(process))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("tilewise").setLevel(level)


def http_log_config(process: str, level: str, access: bool, quiet_paths: Collection[str] = ()) -> dict[str, Any]:
    """Return uvicorn's `log_config`: its lines to standard error, access lines to standard output, as it has them."""
    own = {"()": HttpFormatter, "process": process}
    paths = {"()": AccessPaths, "quiet": quiet_paths}
    stream = {"class": "logging.StreamHandler", "formatter": "http"}
    access_level = level.upper() if access else "CRITICAL"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"http": own},
        "filters": {"paths": paths},
        "handlers": {
            "http": {**stream, "stream": "ext://sys.stderr"},
            "access": {**stream, "stream": "ext://sys.stdout", "filters": ["paths"]},
        },
        "loggers": {
            "uvicorn": {"handlers": ["http"], "level": _uvicorn_level(level), "propagate": False},
            "uvicorn.access": {"handlers": ["access"], "level": _uvicorn_level(access_level), "propagate": False},
        },
    }


def _phrase(record: logging.LogRecord) -> str:
    """Return the name of an access line's status, to follow it as in `200 OK`; nothing for other lines."""
    arguments = record.args
    status = arguments[-1] if record.name == "uvicorn.access" and isinstance(arguments, tuple) and arguments else None
    if not isinstance(status, int) or status not in HTTPStatus._value2member_map_:
        return ""
    return f" {HTTPStatus(status).phrase}"


def _uvicorn_level(level: str) -> str | int:
    """Return a level for uvicorn, whose own `trace` is below DEBUG and has no name until it is imported."""
    return 5 if level.lower() == "trace" else level.upper()


def _prefixed(prefix: str, text: str) -> str:
    return "\n".join(prefix + line for line in text.splitlines() or [""])


Bar = bool | Callable[..., Any]
"""True or False for a bar or none, or what makes one: tqdm, or a function of `total` and `desc` that is like it."""
Advance = Callable[[int], None]
"""A function that moves a bar by a count."""


@dataclass(frozen=True, slots=True)
class TrackedWork:
    """Work that a bar shows, in pieces or `of_bytes`."""

    title: str
    total: int
    of_bytes: bool = False


@contextmanager
def progress_bar(title: str, total: int, show: Bar = True, of_bytes: bool = False) -> Iterator[Advance]:
    """Yield a function that moves the bar by a count; without a terminal there is no bar, unless the caller's."""
    with progress_bars(TrackedWork(title, total, of_bytes), show=show) as (advance,):
        yield advance


@contextmanager
def progress_bars(*works: TrackedWork, show: Bar = True) -> Iterator[list[Advance]]:
    """Yield a function for each of several bars, which are shown one below the other."""
    if callable(show):
        with ExitStack() as close:
            bars = [show(total=work.total, desc=work.title) for work in works]
            for bar in bars:
                close.callback(bar.close)
            yield [bar.update for bar in bars]
        return
    if not show or not sys.stderr.isatty():
        yield [lambda _: None for _ in works]
        return
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(stderr=True)
    rows = [_row(work, console) for work in works]
    with Live(Group(*(row for row, _ in rows)), console=console, transient=True):
        yield [advance for _, advance in rows]


def _row(work: TrackedWork, console: Any) -> tuple[Any, Advance]:
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn

    counts = (DownloadColumn(), TransferSpeedColumn()) if work.of_bytes else (MofNCompleteColumn(),)
    row = Progress(TextColumn("{task.description}"), BarColumn(), *counts, console=console)
    task = row.add_task(work.title, total=work.total)
    return row, lambda count: row.advance(task, count)
