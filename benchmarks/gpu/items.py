"""Items: the pieces of a part. One that fails is noted, and the next one begins."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from benchmarks.gpu.rows import Check, Figure, Note, Notebook, Row
from benchmarks.gpu.setup import Setup

DEVICE_LOST = 75
"""Status of a process whose GPU answers no more: what is left may be tried in another one."""


@dataclass(frozen=True)
class Item:
    name: str
    run: Callable[[], Iterator[Row]]
    needed: bool = False
    """What follows is of no use without it."""


def run_items(items: Iterable[Item], setup: Setup, notebook: Notebook, say: Callable[[str], None]) -> int:
    """The status of the process."""
    known = set(notebook.items("begun"))
    for item in items:
        if item.name in known and not item.needed:
            continue
        if setup.left < 0:
            notebook.write(Note(item.name, "left out: the part's time was up"))
            continue
        notebook.mark("begun", item.name)
        try:
            for row in item.run():
                notebook.write(row)
                say(said(row))
        except Exception as error:  # whatever it is: the others are to be measured all the same
            notebook.write(Note(item.name, _shown(error), failed=True))
            say(f"{item.name}: failed: {type(error).__name__}: {str(error).splitlines()[:1]}")
            if item.needed:
                return 1
        gc.collect()
        answers = device_answers(setup)
        notebook.mark("ended", item.name)
        if not answers:
            notebook.write(Note(item.name, "the device is lost, and a new process goes on behind this", failed=True))
            return DEVICE_LOST
    return 0


def device_answers(setup: Setup) -> bool:
    """An access to memory that is not there ends everything that a process may do with its GPU."""
    if not setup.on_gpu:
        return True
    try:
        torch.cuda.empty_cache()
        torch.ones(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _shown(error: Exception) -> str:
    lines = traceback.format_exception(error)
    return "".join(lines)[-3000:]


def said(row: Row) -> str:
    match row:
        case Figure(what, value, unit):
            return f"{what}: {value:,.4g} {unit}"
        case Check():
            beside = "" if row.torch_us is None else f", torch {row.torch_us:,.1f}"
            how = "ok" if row.passes else "WRONG"
            return f"{row.what}: {how}, worst {row.worst:.2g}, {row.us:,.1f} us{beside}"
        case Note(what, text):
            return f"{what}: {text.splitlines()[0] if text else text}"
