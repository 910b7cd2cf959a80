"""Real runs of `tilewise run-batch` on the demo model, in processes that can be killed."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.served import PICTURES, ROOT

QUESTIONS = {
    "reading_text.png": ("What is the word?", "cat"),
    "color_and_shape.png": ("What color is the circle?", "yellow"),
    "counting.png": ("How many diamonds are in the picture?", "6"),
}
MEDIA = ("--allowed-local-media-path", str(PICTURES))


def requests(count: int) -> Iterator[dict[str, Any]]:
    """Pictures by address and as data, texts, and tokens; `custom_id` counts from 0."""
    for number in range(count):
        picture, (question, _) = list(QUESTIONS.items())[number // 4 % len(QUESTIONS)]
        kind = number % 4
        if kind < 2:
            url = f"file://{PICTURES / picture}" if kind else data_url(picture)
            body = chat([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}])
            yield request(number, "/v1/chat/completions", {**body, "max_tokens": 8})
        elif kind == 2:
            yield request(number, "/v1/chat/completions", {**chat(f"Hello {number}"), "max_tokens": 1 + number % 5})
        else:
            yield request(number, "/tokenize", {"prompt": f"one two {number}"})


def request(number: int, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": f"{number}", "method": "POST", "url": url, "body": body}


def chat(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "temperature": 0}


def data_url(picture: str) -> str:
    return f"data:image/png;base64,{base64.b64encode((PICTURES / picture).read_bytes()).decode()}"


def right_answer(number: int) -> str | None:
    """None where there is no right or wrong."""
    return list(QUESTIONS.values())[number // 4 % len(QUESTIONS)][1] if number % 4 < 2 else None


class Batch:
    """One run; everything it says is in `said` when it has ended."""

    def __init__(self, source: Path, output: Path, *flags: str, file_size: int | None = None) -> None:
        command = [sys.executable, "-m", "tilewise", "run-batch", "-i", str(source), "-o", str(output), *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        self.output = output
        self.said = ""
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
            preexec_fn=None if file_size is None else lambda: _limit_files(file_size),
        )

    def until(self, lines: int) -> None:
        """So many are in the output, or the run has ended."""
        while self.process.poll() is None and lines_of(self.output) < lines:
            time.sleep(0.005)

    @property
    def engine_pid(self) -> int:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        [only] = [pid for pid in found if b"tilewise.remote.begin" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(only)

    def end(self, number: int | None = None) -> int:
        """Send a signal, if any, and wait: the exit status."""
        if number is not None:
            self.process.send_signal(number)
        try:
            self.said, _ = self.process.communicate(timeout=1200)
        finally:
            self.process.kill()
        return self.process.returncode


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def once_each(output: Path, count: int) -> list[dict[str, Any]]:
    """The results in the order of the input, which are all there, once, and right."""
    rows = sorted(map(json.loads, output.read_bytes().splitlines()), key=lambda row: int(row["custom_id"]))
    assert [int(row["custom_id"]) for row in rows] == list(range(count))
    assert len({row["id"] for row in rows}) == count
    for number, row in enumerate(rows):
        assert re.fullmatch(rf"batch_req_{number + 1}_[0-9a-f]{{16}}", row["id"])
        assert row["error"] is None
        assert row["response"]["status_code"] == 200, row
        body, right = row["response"]["body"], right_answer(number)
        if right is not None:
            assert body["choices"][0]["message"]["content"] == right
    return rows


def killed(source: Path, output: Path, count: int, kills: int, *flags: str) -> Batch:
    """Runs of which all but the last are killed at a random moment; the last one."""
    chance = random.Random()
    for number in range(kills):
        batch, before = Batch(source, output, *flags), lines_of(output)
        batch.until(before + chance.randrange(max(1, (count - before) // (kills - number + 1))))
        time.sleep(chance.random() / 20)
        assert batch.end(signal.SIGKILL) == -signal.SIGKILL, f"it was too quick to be killed: {batch.said}"
        print(f"kill {number + 1}: {before} lines before, {lines_of(output)} after")
    last = Batch(source, output, *flags)
    assert last.end() == 0, last.said
    return last
