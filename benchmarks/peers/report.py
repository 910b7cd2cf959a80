"""Results as a page: for each precision a table of medians, and how many times better Tilewise is than each peer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from benchmarks.peers.results import PRECISIONS, Measured, Results
from benchmarks.peers.tasks import ROWS
from benchmarks.peers.work import FULL, QUICK

Value = TypeVar("Value", str, int)
NAMES = {
    "tilewise": "Tilewise",
    "transformers": "transformers",
    "llama_cpp": "llama.cpp",
    "openvino": "OpenVINO GenAI",
    "vllm": "vLLM",
}


def page(results: Results) -> str:
    return "\n".join([*_opening(results), *_tables(results), *_notes(results), *_setting(results)]) + "\n"


def _opening(results: Results) -> Iterator[str]:
    yield "# Tilewise beside its peers"
    yield ""
    if results.quick:
        yield "**A quick run, with small sizes and few samples: it shows that all of it runs, not how fast.**"
        yield ""
    yield "Medians. In brackets: how many times better Tilewise is in the same row and precision, so that 2.0x is twice"
    yield "as fast (or half the memory) and 0.5x half as fast. How to read and to repeat it:"
    yield "[docs/benchmarks.md](../docs/benchmarks.md)."
    if results.commands > 1:
        yield ""
        yield f"{results.commands} commands measured this, and the machine is not equally fast at every hour: numbers"
        yield "are medians of their medians, and ratios are means of those between peers of one command."


def _tables(results: Results) -> Iterator[str]:
    for precision in PRECISIONS:
        measured = results.measured(precision)
        if not measured:
            continue
        yield ""
        yield f"## {precision}"
        yield ""
        yield "| work | " + " | ".join(NAMES[peer] for peer in measured) + " |"
        yield "|---" * (len(measured) + 1) + "|"
        sizes = QUICK if results.quick else FULL
        for row, about in ROWS.items():
            if any(found.value(row) is not None for found in measured.values()):
                cells = (_cell(row, found, measured.get("tilewise")) for found in measured.values())
                yield f"| {about.title(sizes)} | " + " | ".join(cells) + " |"


def _cell(row: str, measured: Measured, ours: Measured | None) -> str:
    value = measured.value(row)
    if value is None:
        return "-"
    better = better_by(row, ours, measured) if ours and measured is not ours else None
    return _number(value) if better is None else f"{_number(value)} ({_number(better)}x)"


def better_by(row: str, ours: Measured, theirs: Measured) -> float | None:
    """How many times better ours is."""
    return ours.ratio(row, theirs) if ROWS[row].more_is_better else theirs.ratio(row, ours)


def _number(value: float) -> str:
    """Three figures, and no more than two decimals unless all are needed."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _notes(results: Results) -> Iterator[str]:
    yield ""
    yield "## What each one computes in"
    yield ""
    if "bf16" not in results.machine["instruction sets"]:
        yield "This CPU multiplies no bfloat16: whatever keeps it widens it to float32 to compute."
        yield ""
    for name, measured in results.variants.items():
        if measured.about:
            details = "; ".join(f"{key}: {value}" for key, value in measured.about.items() if key != "version")
            yield f"- {name}: {details}"
    yield ""
    yield "## What is missing or unlike, and why"
    yield ""
    for name, measured in results.variants.items():
        for why, rows in _by_value(measured.lacks).items():
            yield f"- {name}, {', '.join(rows)}: {why}"
    yield from _prompt_lengths(results)


def _prompt_lengths(results: Results) -> Iterator[str]:
    """Peers may put other tokens around a picture; a large difference would make the rows unlike each other."""
    for row in ROWS:
        counted = {name: found.prompt_tokens for name, found in results.variants.items()}
        names = _by_value({name: tokens[row] for name, tokens in counted.items() if row in tokens})
        if len(names) > 1:
            yield f"- prompt tokens of {row}: " + "; ".join(f"{count} {', '.join(of)}" for count, of in names.items())


def _by_value(values: dict[str, Value]) -> dict[Value, list[str]]:
    found: dict[Value, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def _setting(results: Results) -> Iterator[str]:
    yield ""
    yield "## Machine, versions, command"
    yield ""
    yield from (f"- {name}: {value}" for name, value in results.machine.items())
    yield f"- threads: {results.threads}, for every peer"
    versions = dict.fromkeys(found.about["version"] for found in results.variants.values() if "version" in found.about)
    yield from (f"- {version}" for version in versions)
    counts = [sum(map(len, found.samples.get("start", {}).values())) for found in results.variants.values()]
    yield f"- starts a variant: {min(counts, default=0)} to {max(counts, default=0)}; each sample is in results.json"
    yield ""
    yield "```console"
    yield f"$ {results.command}"
    yield "```"
