"""The platform where there is no card: what is said of each thing that is missing, and what it asks of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.platforms.ascend.device import FakeNpu
from tilewise.errors import InvalidConfig
from tilewise.platforms import ascend, current_platform
from tilewise.platforms.ascend import AscendPlatform, npu_missing
from tilewise.platforms.ascend.npu_ops import AscendOps
from tilewise.platforms.ascend.weights import NzLayout
from tilewise.platforms.base import NotCapturable
from tilewise.platforms.ops import Ops


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    npu_missing.cache_clear()
    yield
    npu_missing.cache_clear()


def installed(monkeypatch: pytest.MonkeyPatch, version: str, load: Any = None, cards: int | None = None) -> None:
    """Pretend that torch_npu is installed, and what comes of loading it."""
    monkeypatch.setattr(ascend, "npu_installed", lambda: version)
    monkeypatch.setattr("tilewise.platforms.ascend.version", lambda _: version)

    def loaded(_: str) -> None:
        if load is not None:
            raise load

    monkeypatch.setattr(ascend, "importlib", SimpleNamespace(import_module=loaded))
    if cards is not None:
        monkeypatch.setattr(torch, "get_device_module", lambda _=None: Module(cards))


class Module(FakeNpu):
    """Of torch's module for NPUs what the platform asks for."""

    def __init__(self, cards: int) -> None:
        super().__init__()
        self.cards = cards

    def is_available(self) -> bool:
        return self.cards > 0

    def device_count(self) -> int:
        return self.cards

    def set_device(self, _: torch.device) -> None:
        pass

    def mem_get_info(self, _: torch.device) -> tuple[int, int]:
        return 60 * 2**30, 64 * 2**30

    def get_device_properties(self, _: torch.device) -> Any:
        return SimpleNamespace(name="Ascend910B2")


OWN = ".".join(torch.__version__.split(".")[:2]) + ".0"
MISSING = {
    "nothing": (None, "torch_npu is not installed"),
    "another torch": (("1.2.0", None, None), "torch_npu 1.2.0 is for another torch than"),
    "no CANN": (
        (OWN, ImportError("libhccl.so: no such file"), None),
        "cannot be loaded (libhccl.so: no such file): inst",
    ),
    "no card": ((OWN, None, 0), "torch_npu finds no NPU: look at npu-smi info"),
}


@pytest.mark.parametrize(("found", "message"), MISSING.values(), ids=MISSING)
def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, found: Any, message: str, caplog: Any) -> None:
    if found is not None:
        version, load, cards = found
        installed(monkeypatch, version, load, cards)
    with pytest.raises(InvalidConfig, match="device=npu is not possible: ") as raised:
        current_platform("npu")
    assert message in str(raised.value)
    assert "use device=cpu" in str(raised.value)
    with caplog.at_level(logging.WARNING, "tilewise"):
        monkeypatch.setattr("tilewise.platforms.cuda.cuda_missing", lambda: "none")
        assert current_platform().name == "cpu"


def test_a_card_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, OWN, cards=2)
    monkeypatch.setattr(torch, "device", lambda kind, number: (kind, number))  # this torch knows no npu
    platform = AscendPlatform(1)
    assert (platform.device, platform.backend) == (("npu", 1), "cpu:gloo,npu:hccl")
    assert platform.total_memory() == 64 * 2**30 > platform.free_memory() > 0
    assert platform.diagnose().facts["NPU"] == "Ascend910B2"
    assert {choice.path for choice in platform.diagnose().choices} == {"CANN", "torch"}
    assert platform.default_dtype(torch.float32, 1) is torch.bfloat16
    assert platform.default_dtype(torch.float16, 1) is torch.float16
    assert platform.block_size in platform.block_sizes
    with pytest.raises(InvalidConfig, match="3 NPUs are needed, one for each rank, and 2 are visible"):
        platform.check_ranks(2)
    with pytest.raises(InvalidConfig, match="batch_invariant is not possible with device=npu"):
        platform.ops(batch_invariant=True)
    assert platform.capturer(Ops()) is None
    monkeypatch.setenv("VLLM_ASCEND_ENABLE_NZ", "2")
    ops = platform.ops()
    assert isinstance(ops, AscendOps)
    assert ops._nz is NzLayout.ALL


@pytest.mark.parametrize("ask", [Tensor.item, Tensor.tolist, Tensor.__int__, lambda found: torch.zeros(2)[found]])
def test_a_step_that_asks_the_device_is_not_captured(ask: Callable[[Tensor], Any]) -> None:
    """Its numbers would be those of the first run in every replay."""

    def step() -> Tensor:
        found = torch.ones((), dtype=torch.int64)
        ask(found)
        return found

    with pytest.raises(NotCapturable, match=r"of the device (is|are) asked for"):
        ascend.capturer_of(FakeNpu())(step)


def test_a_torch_npu_that_cannot_update_graphs_captures_none() -> None:
    class Old(FakeNpu):
        def graph(self, graph: Any, pool: Any) -> Any:  # type: ignore[override]
            raise AssertionError

    assert isinstance(ascend, ModuleType)
    with pytest.raises(NotCapturable, match="auto_dispatch_capture"):
        ascend.capturer_of(Old())(lambda: torch.zeros(1))
