"""`tilewise doctor --ops`: a device's ops beside the reference, and what is said of one that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.called import called
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.fallback import FallbackOps
from tilewise.platforms.ops import Ops, TorchOps
from tilewise.platforms.trial import CASES, try_case


@pytest.mark.parametrize("ops", [TorchOps(), CpuPlatform().ops()], ids=lambda ops: type(ops).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_right_ops_are_right(ops: Ops, dtype: torch.dtype) -> None:
    reports = [try_case(name, CpuPlatform(), ops, dtype) for name in CASES]
    assert {report.verdict for report in reports} == {"right"}, reports


def test_an_op_that_is_a_little_wrong_is_off() -> None:
    class Wrong(TorchOps):
        def rms_norm(self, *args: Any) -> torch.Tensor:
            return super().rms_norm(*args) * 1.001

    report = try_case("RMS norm", CpuPlatform(), Wrong(), torch.float32)
    assert report.verdict == "off"
    assert report.worst == pytest.approx(1e-3, rel=0.1)


def test_one_that_fails_is_told_and_one_that_is_left_to_torch_is_another_thing() -> None:
    class Failing(FallbackOps):
        kernels = "kernels"

        def gelu(self, x: torch.Tensor) -> torch.Tensor:
            return self.attempt(lambda _: 1 / 0, super().gelu, x)

        def draw(self, *_: Any) -> torch.Tensor:
            raise RuntimeError("EZ9999\nmore of it")

    ops = Failing()
    report = try_case("GELU, SwiGLU", CpuPlatform(), ops, torch.float32)
    assert (report.verdict, report.why) == ("by torch", "gelu: division by zero")
    report = try_case("drawing", CpuPlatform(), ops, torch.float32)
    assert (report.verdict, report.worst, report.why) == ("failed", None, "RuntimeError: EZ9999")


def test_the_verb_tries_all_of_them() -> None:
    found = called("doctor", "--ops", "--json", "--device", "cpu")
    assert found.returncode == 0, found.stderr
    assert {report["case"] for report in json.loads(found.stdout)} == set(CASES)


def test_a_device_that_is_not_here_is_told() -> None:
    found = called("doctor", "--ops", "--device", "npu")
    assert found.returncode != 0
    assert "device=npu is not possible: torch_npu is not installed" in found.stderr
