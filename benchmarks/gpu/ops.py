"""Every op of the platform beside the reference op, on fresh random inputs. Part "ops"."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from benchmarks.gpu import cases_attention, cases_products, cases_rows
from benchmarks.gpu.case import Case, Noise
from benchmarks.gpu.items import Item
from benchmarks.gpu.models import spec_of
from benchmarks.gpu.rows import Note, Row
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.timer import Timer

from tilewise.platforms.base import Platform
from tilewise.platforms.ops import Ops

_MAKERS = (cases_attention.cases, cases_rows.cases, cases_products.cases)


def items(setup: Setup) -> Iterator[Item]:
    platform = setup.platform()
    timer = Timer(platform.device)
    for case in all_cases(setup.tiny):
        yield Item(case.name, partial(_checked, case, platform, setup, timer))


def all_cases(tiny: bool) -> Iterator[Case]:
    """The larger model first, and each kind of op in turn, so that something of all is known if time runs out."""
    experts = cases_products.expert_cases("30B-A3B", spec_of("30B-A3B", tiny), tiny)
    for model, more in (("8B", [experts]), ("1B", [])):
        spec = spec_of(model, tiny)
        yield from _in_turns([*(make(model, spec, tiny) for make in _MAKERS), *more])


def _in_turns(kinds: list[Iterator[Case]]) -> Iterator[Case]:
    for some in itertools.zip_longest(*kinds):
        yield from filter(None, some)


def _checked(case: Case, platform: Platform, setup: Setup, timer: Timer) -> Iterator[Row]:
    """By ops that have not yet given up a kernel, as those of an engine do when it fails."""
    ops = platform.ops()
    yield case.check(ops, Noise(setup.generator(case.name)), timer)
    yield from left_out(case.name, ops)


def left_out(what: str, ops: Ops) -> Iterator[Note]:
    """Kernels in whose place torch computed, as they could not be compiled or launched."""
    for op, why in getattr(ops, "left_out", {}).items():
        yield Note(what, f"torch computed {op}, as its kernel failed: {why}", failed=True)
