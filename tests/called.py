"""The command line, called in this process: a Python of its own takes a second to start, and longer with torch."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from subprocess import CompletedProcess
from unittest.mock import patch

from tilewise.cli import main
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import Settings, make_settings, serve_flags, values_of_line


def called(*words: object, **environment: str) -> CompletedProcess[str]:
    """Run `tilewise WORDS` here; return what it prints, neither of it at a terminal, and how it ends."""
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code: object
    with patch.dict(os.environ), redirect_stdout(out), redirect_stderr(errors):
        for name in ("NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        os.environ.update(environment)
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    printed, said = (stream.buffer.getvalue().decode() for stream in (out, errors))  # type: ignore[attr-defined]
    return CompletedProcess(words, code, printed, said)


def read_settings(words: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings that `tilewise serve WORDS` makes of its line, its --config and an environment."""
    return make_settings(values_of_line(CommandLine.read(words, serve_flags())), environment)
