"""Our calls against torch_npu's interface: every version has them, and whatever is wrong in one is caught."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from tests.platforms.ascend import test_ops
from tests.platforms.ascend.device import CheckingPlatform, interface, strict, strict_ops
from tests.platforms.ascend.interface import Interface
from tests.platforms.ascend.mutations import RIGHT, mutations
from tests.platforms.ascend.stand_ins import HALVES, STAND_INS
from tests.platforms.ascend.wheels import VERSIONS
from tilewise.doctor.ops import CASES, try_case
from tilewise.platforms.ascend.weights import NzLayout


def make_all_calls() -> Interface:
    """Make every call that Tilewise makes, in both halves."""
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


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_has_every_call(made: Interface, version: str, tmp_path) -> None:
    calls = tmp_path / "calls.pickle"
    calls.write_bytes(pickle.dumps([call for known in made.calls.values() for call in known.values()]))
    command = [sys.executable, "-m", "tests.platforms.ascend.replay", version, str(calls)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", STAND_INS)
def test_whatever_is_wrong_in_a_call_is_caught(made: Interface, name: str) -> None:
    op, passed, tried = getattr(torch.ops.npu, name), [], 0
    for args, kwargs in made.examples[name]:
        op(*args, **kwargs)  # nothing is wrong with this one
        for what, (wrong_args, wrong_kwargs) in mutations(args, kwargs):
            if (name, what) in RIGHT:
                continue
            tried += 1
            try:
                op(*wrong_args, **wrong_kwargs)
            except Exception:  # by schema, meta kernel or stand-in, of whatever kind
                continue
            passed.append(what)
    assert tried > 1
    assert not passed, passed
