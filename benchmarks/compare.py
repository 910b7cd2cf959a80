"""Tilewise and its peers on the same checkpoint and the same work, in turns: RESULTS.md and results.json.

    python -m benchmarks.compare --checkpoint DIR --forms DIR [--env transformers=PYTHON --env llama_cpp=PYTHON ...]

A peer takes part when `--env` names an interpreter that has it. FORMS holds the checkpoint as each of them reads it:
`transformers/`, `llama_cpp/PRECISION/{text,mmproj}.gguf`, `openvino/PRECISION/`. In each round every peer does one
group of rows before anybody does the next, in a process of its own that begins anew, so that a slow spell of the
machine meets all of them. What is done is written as it goes. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.launch import Job, Variant, launch
from benchmarks.peers.machine import load, machine
from benchmarks.peers.report import page
from benchmarks.peers.results import PEERS, PRECISIONS, Results
from benchmarks.peers.tasks import GROUPS, ROWS, TASKS

from tilewise.inputs.tokenizer import Tokenizer

_WORD = re.compile(r" [a-z]{3,9}")


def main() -> None:
    options = _parser().parse_args()
    out = options.out or Path("build/benchmarks" if options.quick else "benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    variants = list(_variants(options))
    results = _results(options, out / "results.json")
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words.json"
        words.write_text(json.dumps(_single_token_words(options.checkpoint)))
        for variant, job in _turns(options, variants, results, words):
            measured = results.of(variant)
            outcome = launch(variant, job)
            measured.add(outcome, job, results.commands - 1)
            _show(variant, job, outcome.samples, outcome.failure or outcome.lacks.get("everything"))
            results.save(out / "results.json")
            (out / "RESULTS.md").write_text(page(results))
    print(f"{out / 'RESULTS.md'} is written.")


def _single_token_words(checkpoint: Path, most: int = 2000) -> list[str]:
    """Return words that are one token each, so that prompts have exact lengths in every peer.

    They come in the order of their ids, which is that of how common they are.
    """
    tokenizer = Tokenizer.from_folder(checkpoint)
    words = []
    for number in range(tokenizer.vocab_size):
        text = tokenizer.decode([number])
        if _WORD.fullmatch(text) and tokenizer.encode_text(text) == [number]:
            words.append(text[1:])
            if len(words) == most:
                break
    if len(words) < 100:
        raise SystemExit(f"{checkpoint}: {len(words)} words are one token each, at least 100 are needed.")
    return words


def _results(options: argparse.Namespace, earlier: Path) -> Results:
    new = Results(_command(), options.quick, options.threads, options.checkpoint.name, machine())
    if not ((options.add or options.replace) and earlier.exists()):
        return new
    results = Results.load(earlier)
    if not results.like(new):
        raise SystemExit(
            f"{earlier} is of another machine or checkpoint, or of other sizes or threads: without --add and --replace "
            "it begins anew."
        )
    results.command += f"\n$ {new.command}"
    for name, measured in results.variants.items():
        peer, precision = name.split("/")
        if peer in options.peers and precision in options.precisions:
            measured.lacks.clear()  # it may be otherwise now; what is so still is said again
            if options.replace:
                measured.samples = {row: found for row, found in measured.samples.items() if row not in options.rows}
    return results


def _variants(options: argparse.Namespace) -> Iterator[Variant]:
    """Those that were asked for, have an interpreter and have their files."""
    pythons = {"tilewise": sys.executable} | dict(item.split("=", 1) for item in options.env)
    for peer in options.peers:
        for precision in options.precisions:
            form = _form(options, peer, precision)
            if peer not in pythons:
                print(f"{peer}: no --env {peer}=PYTHON, left out")
                break
            if form.exists():
                yield Variant(peer, precision, pythons[peer], form)
            else:
                print(f"{peer}/{precision}: there is no {form}, left out")


def _form(options: argparse.Namespace, peer: str, precision: str) -> Path:
    if peer == "tilewise":
        return Path(options.checkpoint)
    one_for_all = peer in ("transformers", "vllm")  # which convert as they load
    return Path(options.forms, "transformers") if one_for_all else Path(options.forms, peer, precision)


def _turns(
    options: argparse.Namespace, variants: list[Variant], results: Results, words: Path
) -> Iterator[tuple[Variant, Job]]:
    """Who is next, and with what. What took longer than --slow is not repeated, nor what a peer cannot do."""
    slow: set[tuple[str, str]] = set()
    for number in range(options.rounds):
        for group in GROUPS:
            turn = number % max(1, len(variants))  # nobody is always first
            for variant in variants[turn:] + variants[:turn]:
                measured = results.of(variant)
                left = tuple(row for row in _rows(group, variant.peer, options.rows) if row not in measured.lacks)
                if not left or "everything" in measured.lacks or (variant.name, group) in slow:
                    continue
                job = Job(group, left, number, options.threads, options.quick, words, options.limit)
                yield variant, job
                if measured.seconds.get(group, 0) > options.slow:
                    slow.add((variant.name, group))


def _rows(group: str, peer: str, wanted: list[str]) -> list[str]:
    tasks = [task for task in TASKS.values() if task.group == group and task.only in (None, peer)]
    return [row for task in tasks for row in task.rows if row in wanted]


def _show(variant: Variant, job: Job, samples: list[tuple[str, float]], trouble: str | None) -> None:
    said = ", ".join(f"{row} {value:.4g} {ROWS[row].unit}" for row, value in samples)
    print(f"round {job.round + 1} {variant.name} {job.group} [load {load():.1f}]: {said}{trouble or ''}", flush=True)


def _command() -> str:
    """As it was typed, without where things lie on this machine."""
    words = ("=".join(Path(part).name for part in word.split("=")) if "/" in word else word for word in sys.argv[1:])
    return shlex.join(["python", "-m", "benchmarks.compare", *words])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a checkpoint in the original format")
    parser.add_argument("--forms", type=Path, default=Path("forms"), help="folder of its other forms")
    parser.add_argument("--env", action="append", default=[], metavar="PEER=PYTHON", help="interpreter that has a peer")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which a process is stopped")
    parser.add_argument("--slow", type=float, default=300, help="seconds beyond which a group is measured once")
    parser.add_argument("--add", action="store_true", help="add to the results.json that is there")
    parser.add_argument("--replace", action="store_true", help="the same, without what it has of the rows asked for")
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks; build/benchmarks with --quick)")
    return parser


if __name__ == "__main__":
    main()
