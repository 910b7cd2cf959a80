"""Lines of a batch, files of them, and runs over them that need no engine."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tilewise.jobs.feed import Ask, Feed, InFlight, Input
from tilewise.jobs.input import InputLine, Task, line_digests, read_lines
from tilewise.jobs.output import BatchResult, Found, Output, scan

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize")
LIMIT = 4096


def request(custom_id: Any, url: str = "/v1/completions", **changes: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": f"{custom_id}"}, **changes}


def write_lines(path: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def answer(line: InputLine, task: Task, status: int = 200) -> BatchResult:
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    return BatchResult.answered(line, task, status, "r", {"said": json.loads(task.body)["prompt"], "usage": usage})


def in_any_order(seed: int) -> Ask:
    """Answers come in another order than that of the questions."""
    chance = random.Random(seed)

    async def ask(line: InputLine, task: Task) -> BatchResult:
        for _ in range(chance.randrange(9)):
            await asyncio.sleep(0)
        return answer(line, task)

    return ask


def run(
    source: Path,
    output: Path,
    ask: Ask,
    *,
    in_flight: int = 4,
    keep_order: bool = False,
    wrote: Callable[[BatchResult], None] | None = None,
) -> Found:
    """What one run does, without locks, engines and signals."""
    digests = line_digests(source)
    found = scan(output, digests)

    async def feed() -> None:
        lines = Input(read_lines(source, LIMIT), digests, found.finished, PATHS, LIMIT)
        limit, opened = InFlight(in_flight, keep_order), Output(output)
        try:
            await Feed(lines, ask, opened, limit, wrote or found.add).run()
        finally:
            opened.close()

    asyncio.run(feed())
    return found


def ids(rows: Sequence[dict[str, Any]]) -> list[Any]:
    return [row["custom_id"] for row in rows]
