"""`python -m benchmarks.gpu`, which has to run to its end on a card that nobody has tried it on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.gpu import cases_attention, cases_products, cases_rows
from benchmarks.gpu.case import Case, Noise, compared
from benchmarks.gpu.child import GIVEN_UP, run_part, start_part, watched
from benchmarks.gpu.goals import GOALS
from benchmarks.gpu.items import Item, run_items
from benchmarks.gpu.models import spec_of
from benchmarks.gpu.parts import GRACE, PARTS
from benchmarks.gpu.report import with_floors
from benchmarks.gpu.rows import Figure, Notebook, Row
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.streams import Seen
from benchmarks.gpu.timer import Timer
from torch import Tensor

from tests.platforms.cuda.card import installed
from tilewise.platforms.ops import OPS, Ops

ROOT = Path(__file__).parents[2]


def one_of_each_op() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for make in (cases_attention.cases, cases_rows.cases, cases_products.cases, cases_products.expert_cases):
        size = "30B-A3B" if make is cases_products.expert_cases else "1B"
        for case in make(size, spec_of(size, tiny=True), tiny=True):
            found.setdefault(case.name.partition(" ")[0], case)
    return found


CASES = one_of_each_op()


class Wrong(Ops):
    """Whose results are changed by `changed`."""


def changed(prepare: Callable[[Ops, SimpleNamespace], Callable[[], Any]]) -> Any:
    def prepared(ops: Ops, given: SimpleNamespace) -> Callable[[], Any]:
        call = prepare(ops, given)
        return (lambda: _off(call())) if isinstance(ops, Wrong) else call

    return prepared


def _off(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result + 1 if result.dtype == torch.int64 else result * 1.1
    return tuple(map(_off, result))


def test_every_op_has_a_case() -> None:
    """Weights, and what is a part of others here, aside."""
    assert set(OPS) - set(CASES) == {"store", "store_int8", "linear"}
    assert "product" in CASES


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_off_is_found(case: Case) -> None:
    timer, noise = Timer(torch.device("cpu")), Noise(torch.Generator().manual_seed(1))
    right = case.check(Ops(), noise, timer)
    assert right.passes
    assert right.us > 0
    assert right.worst == 0
    assert not replace(case, prepare=changed(case.prepare)).check(Wrong(), noise, timer).passes


class WrongKeys(Ops):
    """Whose keys are a little too large."""

    def rope_into_cache(self, query: Tensor, key: Tensor, *others: Any) -> Tensor:
        return super().rope_into_cache(query, 1.05 * key, *others)


@pytest.mark.parametrize("kv", ["auto", "int8", "fp8"])
def test_what_is_off_within_a_coarse_cache_is_found(kv: str) -> None:
    name = "rope_into_cache 1B, 17 rows" + ("" if kv == "auto" else f", {kv} cache")
    (case,) = (case for case in cases_attention.cases("1B", spec_of("1B", True), True) if case.name == name)
    timer, noise = Timer(torch.device("cpu")), Noise(torch.Generator().manual_seed(1))
    assert case.check(Ops(), noise, timer).passes
    assert not case.check(WrongKeys(), noise, timer).passes


def test_numbers_that_are_none_are_wrong() -> None:
    truth = torch.ones(3)
    assert compared([truth.clone()], [truth], [truth]).passes
    assert not compared([torch.tensor([1.0, float("nan"), 1.0])], [truth], [truth]).passes


def setup_in(folder: Path, seconds: float = 60) -> Setup:
    return Setup("cpu", True, folder, 1, time.time() + seconds)


def test_an_item_that_fails_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    def fails() -> Iterator[Row]:
        yield Figure("half", 1.0, "ms")
        raise RuntimeError("as a kernel does")

    def works() -> Iterator[Row]:
        yield Figure("whole", 2.0, "ms")

    items = [Item("first", fails), Item("second", works)]
    book = Notebook(tmp_path / "rows.jsonl")
    assert run_items(items, setup_in(tmp_path), book, lambda text: None) == 0
    assert [row["what"] for row in book.rows()] == ["half", "first", "whole"]
    assert "as a kernel does" in book.rows()[1]["text"]
    # In another process, what has begun is not begun again.
    assert run_items(items, setup_in(tmp_path), book, lambda text: None) == 0
    assert len(book.rows()) == 3


def test_nothing_goes_on_without_what_it_needs(tmp_path: Path) -> None:
    def fails() -> Iterator[Row]:
        yield from ()
        raise ValueError("no room")

    book = Notebook(tmp_path / "rows.jsonl")
    items = [Item("start", fails, needed=True), Item("behind", lambda: iter([Figure("x", 1.0, "s")]))]
    assert run_items(items, setup_in(tmp_path), book, lambda text: None) == 1
    assert [row["what"] for row in book.rows()] == ["start"]


def test_what_has_no_time_left_is_left_out(tmp_path: Path) -> None:
    book = Notebook(tmp_path / "rows.jsonl")
    items = [Item("late", lambda: iter([Figure("x", 1.0, "s")]))]
    run_items(items, setup_in(tmp_path, seconds=-1), book, lambda text: None)
    assert book.rows()[0]["text"].startswith("left out")


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    ended = start_part("card", setup_in(tmp_path, seconds=-GRACE))
    assert ended.state == "stopped"
    assert ended.error is not None
    assert "time was up" in ended.error


def test_a_process_that_writes_nothing_is_given_up(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(words) as silent:
        assert watched(silent, setup_in(tmp_path), 0, tmp_path / "rows.jsonl") == GIVEN_UP
        silent.kill()
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as ended:
        assert watched(ended, setup_in(tmp_path), None, tmp_path / "rows.jsonl") == 7


def test_floors_are_those_of_the_measured_rates() -> None:
    work = {"bytes": 1e9, "floats": 0.0, "int8": 0.0}
    card = [
        {"kind": "figure", "what": name, "value": value}
        for name, value in (("copy", 500.0), ("read", 1000.0), ("bfloat16 product", 1.0))
    ]
    decode = {"kind": "figure", "what": "decode", "value": 500.0, "unit": "tokens/s", "work": [work], "tokens": 1}
    first = {"kind": "figure", "what": "first", "value": 4.0, "unit": "ms", "work": [work, work], "tokens": 0}
    parts = {name: {"rows": rows} for name, rows in {"card": card, "8B": [decode, first]}.items()}
    assert with_floors(parts) is not None
    assert (decode["floor"], decode["share"]) == (pytest.approx(1000), pytest.approx(0.5))
    assert (first["floor"], first["share"]) == (pytest.approx(2), pytest.approx(0.5))


def test_rates_are_of_what_all_streams_do_at_once() -> None:
    """A token every 2 s of one stream, and every second of another one that begins later."""
    seen = Seen([[2.0 * token for token in range(12)], [10.0 + token for token in range(12)]])
    assert seen.rate == pytest.approx((4 + 8) / 8)  # from 13 to 21, where the second one ends: tokens behind 13
    assert set(seen.between) == {1.0, 2.0}


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.what)
def test_goals_are_told_from_figures(goal: Any) -> None:
    with pytest.raises(KeyError):
        goal.found({})
    assert goal.reached(goal.wanted)
    assert goal.reached(goal.wanted / 2) is goal.most


def rehearse(folder: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.slow
def test_rehearsal_of_one_part(tmp_path: Path) -> None:
    (part,) = rehearse(tmp_path, "--parts", "1B-again", "--seconds", "120")["parts"].values()
    assert (part["state"], part["error"]) == ("done", None)
    assert "start to first answer" in [row["what"] for row in part["rows"]]


def test_parts_without_time_are_named(tmp_path: Path) -> None:
    result = rehearse(tmp_path, "--seconds", "5")
    assert {part["state"] for part in result["parts"].values()} == {"left out"}


@pytest.mark.slow
def test_rehearsal_of_all(tmp_path: Path) -> None:
    result = rehearse(tmp_path)
    assert list(result["parts"]) == list(PARTS)
    for part in result["parts"].values():
        assert (part["state"], part["error"]) == ("done", None)
        assert [row for row in part["rows"] if row.get("failed") or row.get("passes") is False] == []
    assert result["measured"]["bandwidth"] > 1e8
    shares = [row["share"] for row in result["parts"]["8B"]["rows"] if "share" in row]
    assert len(shares) > 8
    assert min(shares) > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("part", ["card", "1B", "8B-int8", "8B-w4a16", "30B-A3B", "transformers-1B"])
def test_parts_on_the_card_of_the_tests(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part runs to its end with the events, streams and memory that it has only on a GPU. torch's ops compute."""
    monkeypatch.setenv("TILEWISE_CUDA_KERNELS", "0")
    with installed():
        assert run_part(part, Setup("cuda", tiny=True, folder=tmp_path, seed=1, ends=time.time() + 600)) == 0
    failed = [row["what"] for row in Notebook(tmp_path / f"{part}.jsonl").rows() if row.get("failed")]
    assert failed == (["kernels"] if part == "1B" else []), "torch's profiler traces a GPU or nothing"
