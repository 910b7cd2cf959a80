"""Our calls against torch_npu's interface: every version has them, and whatever is wrong in one is caught."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import torch

from tests.platforms.ascend import test_ops
from tests.platforms.ascend.device import CheckingPlatform, interface, strict, strict_ops
from tests.platforms.ascend.interface import Call, Interface
from tests.platforms.ascend.mutations import RIGHT, mutations
from tests.platforms.ascend.stand_ins import HALVES, STAND_INS
from tests.platforms.ascend.wheels import VERSIONS
from tilewise.platforms.ascend.weights import NzLayout
from tilewise.platforms.trial import CASES, try_case


def make_all_calls() -> Interface:
    """Make every call that Tilewise makes, in both halves; those before, which may have been lenient, are forgotten."""
    interface().calls.clear()
    interface().examples.clear()
    with strict():
        for dtype in HALVES:
            for name in CASES:
                assert try_case(name, CheckingPlatform(), strict_ops(), dtype).verdict == "right"
            test_ops.test_products_of_int8_with_rows_rounded_as_they_come(dtype, True, NzLayout.ALL)
        for kind in ("floats", "int8"):
            for here in (range(5), range(1, 4)):
                test_ops.test_experts_together(kind, True, here)
    return interface()


@pytest.fixture(scope="module")
def made() -> Iterator[Interface]:
    found = make_all_calls()
    with strict():
        yield found


def test_every_op_that_there_is_a_stand_in_for_is_called(made: Interface) -> None:
    assert set(made.calls) == set(STAND_INS)
    assert made.without_meta == ("npu_format_cast",)


def replayed(calls: Iterable[Call]) -> list[str]:
    """Give calls to every torch_npu, and return how each ended, behind what it refuses."""
    with NamedTemporaryFile(suffix=".pickle") as file:
        file.write(pickle.dumps(list(calls)))
        file.flush()
        command = [sys.executable, "-m", "tests.platforms.ascend.replay", file.name, *VERSIONS]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return found.stdout.splitlines()


def refused_by(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether schema, meta kernel or stand-in refuse a call."""
    try:
        getattr(torch.ops.npu, name)(*args, **kwargs)
    except Exception:  # of whatever kind
        return True
    return False


def test_every_version_has_every_call(made: Interface) -> None:
    calls = [call for known in made.calls.values() for call in known.values()]
    assert replayed(calls) == [f"{version}: 0" for version in VERSIONS]


@pytest.mark.parametrize("name", STAND_INS)
def test_whatever_is_wrong_in_a_call_is_caught(made: Interface, name: str) -> None:
    tried = 0
    for args, kwargs in made.examples[name]:
        assert not refused_by(name, args, kwargs), "nothing is wrong with this one"
        for what, wrong in mutations(args, kwargs):
            if (name, what) not in RIGHT:
                tried += 1
                assert refused_by(name, *wrong), what
    assert tried > 1
