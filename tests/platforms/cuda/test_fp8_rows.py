"""Rows rounded to FP8 for matrices of FP8: the products, who asks for them, and who computes where they fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.platforms.cuda.test_products import PRECISION, REFERENCE, TorchAlone, kept
from tests.platforms.test_grouped import grouped, noise
from tests.tiny import SPECS, write_original
from tilewise.config import EngineConfig
from tilewise.models.load import Architecture
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cuda import A100, B200, H100, RTX4090, RTX5090, Card, CudaPlatform, GpuTorchOps
from tilewise.platforms.cuda.triton_ops import TritonOps
from tilewise.platforms.cuda.weights import CudaFp8Weight, CudaGroupedWeight
from tilewise.platforms.forms import Codes, Grouped
from tilewise.platforms.kv_cache import quantise
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import GroupedWeight, Use
from tilewise.runner.build import tile_store
from tilewise.runner.tile_store import CappedFolder
from tilewise.weights.folder import CheckpointFolder

CASES = (
    # inputs, group, rows, ordered, card
    (300, 300, 1, False, H100),
    (300, 300, 65, False, RTX4090),
    (300, 128, 17, True, H100),
    (300, 128, 65, False, B200),
    (1100, 128, 3, False, H100),  # split
    (1100, 1100, 3, True, RTX5090),
)


def rounded(x: Tensor, form: Grouped) -> Tensor:
    """Round rows as the reference rounds such rows of a cache, and return float32 in the order of the codes."""
    ordered = x if form.order is None else x[:, form.order]
    groups = F.pad(ordered, (0, -x.shape[1] % form.group)).unflatten(1, (-1, form.group))
    levels, scales = quantise(groups, torch.float8_e4m3fn)
    return (levels.float() * scales[..., None]).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fp8_meets_rows_of_fp8(case: tuple[int, int, int, bool, Card], device: torch.device) -> None:
    """Against float64 of the rows that the reference's rounding gives."""
    inputs, group, rows, ordered, card = case
    form = grouped(Codes.FP8, inputs, 33, group, ordered=ordered)
    for dtype in (torch.float32, torch.bfloat16):
        bias = None if ordered else noise(33, seed=8).to(dtype)
        x = noise(rows, inputs, seed=rows).to(dtype)
        weight = kept(form, bias, device, card, fp8_rows=True)
        assert isinstance(weight, CudaFp8Weight)
        found = weight.apply(x.to(device), REFERENCE).cpu()
        assert found.dtype == dtype
        numbers, matrix = rounded(x, form).double(), replace(form, order=None).dequantised().double()
        exact, sizes = numbers @ matrix.T, numbers.abs() @ matrix.abs().T
        if bias is not None:
            exact, sizes = exact + bias.double(), sizes + bias.double().abs()
        assert ((found.double() - exact).abs() <= 1e-6 * sizes + PRECISION[dtype] / 2 * exact.abs()).all()


@pytest.mark.parametrize("group", [300, 128])
def test_numbers_of_rows_are_off_by_what_is_stated(group: int, device: torch.device) -> None:
    """In docs/cuda.md and at `cuda_store`. The identity gives the rows themselves, in which no sum is rounded."""
    one = torch.tensor(1.0).to(torch.float8_e4m3fn).view(torch.uint8)
    form = Grouped(Codes.FP8, torch.eye(300, dtype=torch.uint8) * one, torch.ones(300, -(-300 // group)), None, group)
    x = noise(9, 300, seed=1) * torch.linspace(-16, 0, 300).exp()  # numbers of all sizes beside each other
    largest = torch.cat([part.abs().amax(1, keepdim=True).expand_as(part) for part in x.split(group, dim=1)], dim=1)
    by_floats, by_fp8 = (
        kept(form, None, device, fp8_rows=fp8_rows).apply(x.to(device), REFERENCE).cpu() for fp8_rows in (False, True)
    )
    assert torch.equal(by_floats, x)
    off = (by_fp8 - x).abs() / torch.maximum(x.abs() / 16, largest / 450_000)
    assert 0.9 < off.max() <= 1


@pytest.mark.parametrize("gelu", [False, True])
def test_torch_multiplies_rows_of_floats_where_the_kernel_fails(gelu: bool, caplog: Any) -> None:
    bias, ops = noise(33, seed=8), TorchAlone()
    for group, ordered in ((300, False), (128, True)):
        form, x = grouped(Codes.FP8, 300, 33, group, ordered=ordered), noise(2, 3, 300, seed=1)
        weight, plain = kept(form, bias, torch.device("cpu"), fp8_rows=True), GroupedWeight(form, bias).apply(x, ops)
        torch.testing.assert_close(weight.apply(x, ops, gelu), REFERENCE.gelu(plain) if gelu else plain)
    assert [record.message for record in caplog.records] == [
        "CUDA kernels: fp8_product is left to torch, as ours fails: out of resource: shared memory"
    ]


FORM = grouped(Codes.FP8, 256, 33, 256)


def test_other_codes_groups_and_cards_keep_rows_as_they_are() -> None:
    def store(form: Grouped, card: Card = H100, use: Use = Use.ALONE) -> object:
        return TritonOps(card, fp8_rows=True).store([form], None, use)

    assert isinstance(store(FORM), CudaFp8Weight)
    assert isinstance(store(FORM, A100), CudaGroupedWeight)
    assert isinstance(store(FORM, use=Use.EXPERT), GroupedWeight)
    assert isinstance(store(grouped(Codes.FP8, 256, 33, 64)), CudaGroupedWeight)
    assert isinstance(store(grouped(Codes.INT8, 256, 33, 256)), CudaGroupedWeight)


def ops_on(card: Card) -> Ops:
    """Return the ops that the platform has on a card, which need not be here."""
    platform = object.__new__(CudaPlatform)
    vars(platform)["card"] = card
    platform.ops()
    return platform.ops()


def test_rows_are_rounded_where_that_is_asked_for_alone(monkeypatch: Any, caplog: Any) -> None:
    for text, kind in (("1", CudaFp8Weight), ("0", CudaGroupedWeight), (None, CudaGroupedWeight)):
        monkeypatch.delenv("TILEWISE_FP8_ROWS", raising=False)
        if text is not None:
            monkeypatch.setenv("TILEWISE_FP8_ROWS", text)
        assert isinstance(ops_on(H100).store([FORM], None), kind), text
    assert not caplog.records


def test_a_card_without_products_of_fp8_says_so_once(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setenv("TILEWISE_FP8_ROWS", "1")
    assert isinstance(ops_on(A100).store([FORM], None), CudaGroupedWeight)
    monkeypatch.setenv("TILEWISE_CUDA_KERNELS", "0")
    assert isinstance(ops_on(H100), GpuTorchOps)
    assert [record.message for record in caplog.records] == [
        "TILEWISE_FP8_ROWS has no effect: compute capability (8, 0) is below 8.9, and has no products of FP8",
        "TILEWISE_FP8_ROWS has no effect: switched off by TILEWISE_CUDA_KERNELS",
    ]


def test_encoded_tiles_are_kept_apart(tmp_path: Path) -> None:
    """A tower with matrices of FP8 gives other rows."""
    config = Architecture.of(CheckpointFolder.open(write_original(tmp_path / "model", SPECS["qwen2-300m"]))).config
    folder, platform = CappedFolder(tmp_path / "tiles", 2**20), CpuPlatform()
    keys = [
        tile_store(EngineConfig.of(), folder, b"weights", config, torch.bfloat16, platform, ops)._form.model_key
        for ops in (TritonOps(H100), TritonOps(H100), TritonOps(H100, fp8_rows=True))
    ]
    assert keys[0] == keys[1] != keys[2]
