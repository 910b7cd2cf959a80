"""Every op of the platform beside the reference op, on fresh random inputs. Part "ops"."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from benchmarks.gpu import cases_attention, cases_products, cases_rows
from benchmarks.gpu.case import Case, Noise
from benchmarks.gpu.items import Item
from benchmarks.gpu.models import spec_of
from benchmarks.gpu.rows import Row
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.timer import Timer

from tilewise.platforms.base import Ops

_MAKERS = (cases_attention.cases, cases_rows.cases, cases_products.cases)


def items(setup: Setup) -> Iterator[Item]:
    platform = setup.platform()
    ops, timer = platform.ops(), Timer(platform.device)
    for case in all_cases(setup.tiny):
        yield Item(case.name, partial(_checked, case, ops, setup, timer))


def all_cases(tiny: bool) -> Iterator[Case]:
    """The larger model first, and each kind of op in turn, so that something of all is known if time runs out."""
    experts = cases_products.expert_cases("30B-A3B", spec_of("30B-A3B", tiny), tiny)
    for model, more in (("8B", [experts]), ("1B", [])):
        spec = spec_of(model, tiny)
        yield from _in_turns([*(make(model, spec, tiny) for make in _MAKERS), *more])


def _in_turns(kinds: list[Iterator[Case]]) -> Iterator[Case]:
    for some in itertools.zip_longest(*kinds):
        yield from filter(None, some)


def _checked(case: Case, ops: Ops, setup: Setup, timer: Timer) -> Iterator[Row]:
    yield case.check(ops, Noise(setup.generator(case.name)), timer)
