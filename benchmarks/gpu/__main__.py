"""Measure Tilewise on a GPU: one call, one JSON, under nine minutes.

    python -m benchmarks.gpu [--seconds 510] [--parts card ops 8B] [--out build/gpu]

Nothing is downloaded and no weights are needed: models have published shapes and random numbers, drawn on the device.
Each part runs in a process of its own and has its time. What fails is written down with its error, and the next begins;
what does not fit into the time is named. `OUT/result.json` has everything: medians with their extremes, the least time
that the measured bandwidth and matrix rate of this card allow (`floor`), and which share of that is reached (`share`).

    python -m benchmarks.gpu --device cpu --tiny

is the rehearsal without a GPU: the same parts on tiny models, in a minute or two. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.gpu.child import run_part, start_part
from benchmarks.gpu.parts import GRACE, PARTS
from benchmarks.gpu.report import as_record, device_record, machine, show, with_floors
from benchmarks.gpu.rows import Notebook
from benchmarks.gpu.setup import Setup
from rich.console import Console

SECONDS = 510
UNHURRIED = 4
"""A rehearsal's part may take so many times as long, as its machine does other things beside it."""


def main() -> int:
    options = read_options()
    if options.part:
        setup = Setup(options.device, options.tiny, options.folder, options.seed, options.ends)
        return run_part(options.part, setup)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU. The rehearsal needs none: python -m benchmarks.gpu --device cpu --tiny")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as cache:
        # Kernels are compiled for the first time in the first part, whatever was compiled here before.
        os.environ["TRITON_CACHE_DIR"] = cache
        result = run(options)
    show(result, Console(width=170))
    print(f"{options.out / 'result.json'} has all of this, and {options.out} what each part logged.")
    wrong = [row for part in result["parts"].values() for row in part["rows"] if row.get("passes") is False]
    return 1 if wrong else 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All parts, as far as there is time; the JSON is written after each, so that a call that is ended has some."""
    started = time.time()
    seed = options.seed if options.seed is not None else time.time_ns() % 10**6
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "tiny": options.tiny,
        "seed": seed,
        "began": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
        "machine": machine(options.device),
        "parts": {},
    }
    for name in options.parts:
        part, left = PARTS[name], started + options.seconds - time.time()
        if left < part.least:
            told = f"left out: {left:.0f} s are left, it needs {part.least}"
            print(f"[{left:4.0f} s left] {name} is {told}", flush=True)
            result["parts"][name] = as_record(part.about, "left out", told, 0.0, [])
            write(result, options.out, started)
            continue
        print(f"[{left:4.0f} s left] {name}: {part.about}", flush=True)
        begun = time.time()
        seconds = part.seconds * (UNHURRIED if options.tiny else 1)
        ends = min(begun + seconds, started + options.seconds - GRACE)
        setup = Setup(options.device, options.tiny, options.out, seed, ends)
        ended = start_part(name, setup)
        rows = Notebook(options.out / f"{name}.jsonl").rows()
        result["parts"][name] = as_record(part.about, ended.state, ended.error, time.time() - begun, rows)
        result["measured"] = device_record(with_floors(result["parts"]))
        write(result, options.out, started)
    return result


def write(result: dict[str, Any], folder: Path, started: float) -> None:
    result["seconds"] = time.time() - started
    (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def read_options() -> argparse.Namespace:
    about = "\n".join(f"  {name:16} {part.about} ({part.seconds} s at most)" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        epilog=f"Parts, in this order:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="twins of the models, and small sizes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all parts together (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu"), help="folder for all files (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of random inputs (default: another one each time)")
    for name, kind in (("--part", str), ("--folder", Path), ("--ends", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
