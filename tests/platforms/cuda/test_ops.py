"""TritonOps as a platform's ops: each against the reference, and what happens where a kernel cannot be compiled."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from tests.platforms.test_ops import ARGUMENTS, OF_OWN_DTYPES, TOLERANCE, close
from tilewise.platforms.cuda import H100
from tilewise.platforms.cuda.triton_ops import TritonOps
from tilewise.platforms.draw import Draw, noise_key
from tilewise.platforms.ops import OPS, Ops, overrides


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "linear"])
def test_ops_are_the_reference_ops(name: str, dtype: torch.dtype) -> None:
    ops = TritonOps(H100)
    results = [getattr(one, name)(*ARGUMENTS[name](dtype)) for one in (ops, Ops())]
    for found, expected in zip(*(one if isinstance(one, tuple) else (one,) for one in results), strict=True):
        close(found, expected, expected.dtype if name in OF_OWN_DTYPES else dtype)
    assert not ops.left_out


def test_tokens_are_those_that_the_reference_draws() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(3)) * 3
    wanted = [(1.0, 0, 1.0, 0.0), (0.7, 20, 1.0, 0.0), (1.3, 0, 0.9, 0.0), (0.9, 0, 1.0, 0.1), (1.0, 7, 0.8, 0.05)]
    draws = [Draw(5 - place, *one, noise_key(place, 17)) for place, one in enumerate(wanted)]
    assert TritonOps(H100).draw(logits.clone(), draws).tolist() == Ops().draw(logits, draws).tolist()


def test_a_kernel_that_cannot_be_compiled_is_left_out_and_said_once(monkeypatch: Any, caplog: Any) -> None:
    class Failing:
        def __getitem__(self, grid: Any) -> Any:
            raise ValueError("too many registers\nmore of it")

    monkeypatch.setattr("tilewise.platforms.cuda.triton_ops.rows._gelu", Failing())
    ops, x = TritonOps(H100), torch.randn(3, 8)
    with caplog.at_level(logging.WARNING, "tilewise"):
        found = [ops.gelu(x) for _ in range(2)]
    assert all(torch.equal(one, Ops().gelu(x)) for one in found)
    assert [record.message for record in caplog.records] == [
        "CUDA kernels: gelu is left to torch, as ours fails: too many registers"
    ]


def test_every_op_has_a_kernel_or_is_named_here() -> None:
    of_torch = {"linear", "clamped_swiglu"}
    assert {name for name in OPS if overrides(TritonOps, name)} == set(OPS) - of_torch
