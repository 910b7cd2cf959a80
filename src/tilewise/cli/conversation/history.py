"""Lines typed in earlier conversations, in a file that nobody else may read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LINES = 1000


@contextmanager
def history(folder: Path) -> Iterator[None]:
    """Let `input` edit lines and go back to earlier ones, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    file = _private_file(folder)
    readline.set_auto_history(True)
    readline.set_history_length(_LINES)
    with contextlib.suppress(OSError):  # some forms of readline (libedit) refuse an empty file
        readline.read_history_file(file)
    try:
        yield
    finally:
        readline.write_history_file(file)
        file.chmod(0o600)


def _private_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    file = folder / "history"
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
    return file
