"""Each program on the demo model, the first in a process of its own; what it prints is what the demo model knows."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.served import ROOT

PROGRAMS = Path(__file__).parent
PRINTED = {
    ("offline_chat.py", "--max_tokens", "5", "--temperature=0", "--enforce-eager", "--max-model-len", "1024"): (
        "one: True, True\nseveral: 1 answer to 3\n"
    ),
    ("vision_language.py",): "cat\n" * 3,
    ("vision_language.py", "--modality", "video", "--disable-mm-processor-cache"): None,
    ("multi_image.py",): "generate: Image-2\nchat: Image-2\n",
    ("structured_outputs.py",): "True\nTrue\n['brand', 'doors']\n",
    ("async_streaming.py",): "stream-0: True\nstream-1: True\nTrue\n",
    ("stepping.py",): "0 [4]\n1 [6]\n2 [5, 5]\n",
}


FIRST = next(iter(PRINTED))


def printed_by_a_process(name: str, *flags: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAMS / name), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed_here(name: str, *flags: str) -> str:
    """Another Python would load torch once more."""
    out, command = io.StringIO(), [str(PROGRAMS / name), *flags]
    with patch.object(sys, "argv", command), redirect_stdout(out):
        runpy.run_path(command[0], run_name="__main__")
    return out.getvalue()


@pytest.mark.parametrize("command", PRINTED, ids=" ".join)
def test_a_program(command):
    lines = (printed_by_a_process if command == FIRST else printed_here)(*command).splitlines()
    if PRINTED[command] is None:  # a clip of a second, asked about three times
        assert len(lines) == 3
        assert len(set(lines)) == 1
    else:
        assert sorted(lines) == sorted(PRINTED[command].splitlines())
