"""Seconds from process start to the first and last character of an answer, median of several runs.

    python benchmarks/startup.py [--model DIR] [--runs 5] [--picture FILE]

Each run is a new `tilewise ask` process, so interpreter, imports, tokenizer, weights and the first step are all in it.
The files are in the page cache after the first run, which is not counted. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tilewise


def one_run(arguments: list[str]) -> tuple[float, float]:
    """(first character, end) of one process, in seconds."""
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "tilewise", "ask", *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"tilewise ask failed with exit code {process.returncode}")
    return first, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--picture", help="default: a sample picture; an empty string asks without one")
    parser.add_argument("--max-tokens", type=int, default=8)
    options = parser.parse_args()
    picture = options.picture
    if picture is None:
        picture = str(Path(tilewise.__file__).parent / "demo" / "pictures" / "stop_sign.jpg")
    arguments = [*([picture] if picture else []), "What is in the picture?", "--model", options.model]
    arguments += ["--max-tokens", str(options.max_tokens)]
    one_run(arguments)
    firsts, totals = zip(*(one_run(arguments) for _ in range(options.runs)), strict=True)
    for name, values in (("first character", firsts), ("whole answer", totals)):
        print(f"{name:16s} median {statistics.median(values):.2f} s, min {min(values):.2f}, max {max(values):.2f}")
    result = {
        "model": options.model,
        "picture": bool(picture),
        "runs": options.runs,
        "first_s": round(statistics.median(firsts), 3),
        "total_s": round(statistics.median(totals), 3),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
