"""A real `tilewise serve` on the demo model, in a process of its own."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "src" / "tilewise" / "demo" / "pictures"
_ADDRESS = re.compile(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")
_PATIENCE = 120.0  # seconds, of a busy machine


@contextmanager
def demo_server(log: Path, *flags: str) -> Iterator[str]:
    """The address of a server that answers; it ends with the block. What it writes goes to `log`."""
    command = [sys.executable, "-m", "tilewise", "serve", "--host", "127.0.0.1", "--port", "0", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _PATIENCE
    while True:
        text = log.read_text(encoding="utf-8", errors="replace")
        if found := _ADDRESS.search(text):
            return found[1]
        assert process.poll() is None, f"the server ended:\n{text}"
        assert time.monotonic() < deadline, f"the server does not get ready:\n{text}"
        time.sleep(0.05)


def question(text: str, picture: str) -> list[dict[str, Any]]:
    """Messages about one of the demo's pictures, sent as a data URL."""
    data = base64.b64encode((PICTURES / picture).read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]
