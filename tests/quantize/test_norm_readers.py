"""Norms whose output only linear layers read, found in blocks of other kinds than the ones that there are."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from tests.tiny import SPECS, write_original
from tests.weights.broken import refused
from tilewise.errors import InvalidConfig
from tilewise.layers import ColumnLinear, ResidualStream, RMSNorm, RowLinear
from tilewise.models.decoder import Attention, DecoderBlock, ForwardContext, GatedMLP
from tilewise.models.load import Architecture
from tilewise.parallel.mesh import Mesh
from tilewise.quantize.modules import find_matrices
from tilewise.quantize.smoothing import find_smoothed
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder


class OtherBlock(DecoderBlock):
    """A block that makes other rows of those that come in, by `of`."""

    def __call__(self, rows: ResidualStream, cache: Tensor, at: ForwardContext) -> None:
        ResidualStream.__init__(rows, self.of(rows.sum(at.ops), cache, at))

    @abstractmethod
    def of(self, x: Tensor, cache: Tensor, at: ForwardContext) -> Tensor: ...


class NormResidual(OtherBlock):
    """The residual stream reads the first norm as well."""

    def of(self, x: Tensor, cache: Tensor, at: ForwardContext) -> Tensor:
        normed = self._norm1(x, at.ops)
        x, normed = self._norm2.after(normed, None, self._attention(normed, cache, at), at.ops)
        return at.ops.add_scaled(x, None, self._mlp(normed, at.ops))


class Sandwich(OtherBlock):
    """The second norm stands behind the attention, and no linear layer reads it."""

    def of(self, x: Tensor, cache: Tensor, at: ForwardContext) -> Tensor:
        x = x + self._norm2(self._attention(self._norm1(x, at.ops), cache, at), at.ops)
        return x + self._mlp(x, at.ops)


class PostNorm(OtherBlock):
    """What a block gives is what its last norm gives, and the MLP reads the first."""

    def of(self, x: Tensor, cache: Tensor, at: ForwardContext) -> Tensor:
        x = self._norm1(x + self._attention(x, cache, at), at.ops)
        return self._norm2(x + self._mlp(x, at.ops), at.ops)


class Parallel(OtherBlock):
    """Attention and MLP read one norm."""

    def of(self, x: Tensor, cache: Tensor, at: ForwardContext) -> Tensor:
        normed = self._norm1(x, at.ops)
        return x + self._attention(normed, cache, at) + self._mlp(normed, at.ops)


class OnePlus(DecoderBlock):
    """Norms multiply by one more than their weights, which cannot be divided."""

    def __init__(self, view: Any, config: Any, attention: Any, mlp: Any) -> None:
        super().__init__(view, config, attention, mlp)
        for norm in (self._norm1, self._norm2):
            assert isinstance(norm, RMSNorm)
            norm.weight = norm.weight + 1


class HalfNormed(OtherBlock):
    """The gate reads the norm, and up what is in front of it; Phi-3's files keep both in one matrix."""

    def __init__(self, view: Any, config: Any, attention: Any, mlp: Any) -> None:
        super().__init__(view, config, attention, mlp)
        inner, hidden = config.intermediate_size, config.hidden_size
        self._gate, self._up = (
            ColumnLinear(view.at("mlp"), {name: inner}, hidden, False, Mesh()) for name in ("gate_proj", "up_proj")
        )
        self._down = RowLinear(view.at("mlp"), "down_proj", inner, hidden, False, Mesh())

    def of(self, x: Tensor, cache: Tensor, at: ForwardContext) -> Tensor:
        x = x + self._attention(self._norm1(x, at.ops), cache, at)
        return x + self._down(self._gate(self._norm2(x, at.ops), at.ops) * self._up(x, at.ops), at.ops)


@pytest.mark.parametrize(
    ("name", "kind", "expected", "left_alone"),
    [
        ("qwen2-300m", DecoderBlock, {"input_layernorm": 3, "post_attention_layernorm": 2}, None),
        ("phi3-300m", DecoderBlock, {"input_layernorm": 1, "post_attention_layernorm": 1}, None),
        ("qwen2-300m", NormResidual, {"post_attention_layernorm": 2}, "input_layernorm"),
        ("qwen2-300m", Sandwich, {"input_layernorm": 3}, None),
        ("qwen2-300m", Parallel, {"input_layernorm": 5}, None),
        ("qwen2-300m", PostNorm, {}, None),
        ("qwen2-300m", OnePlus, {}, None),
        ("qwen2-300m", HalfNormed, {"input_layernorm": 3, "post_attention_layernorm": 1}, None),
        ("phi3-300m", HalfNormed, {"input_layernorm": 1}, "post_attention_layernorm"),
    ],
)
def test_norms_that_something_else_reads_are_left_alone(tmp_path, name, kind, expected, left_alone, caplog):
    def block(view: Any, config: Any, layer: int, mesh: Any) -> DecoderBlock:
        attention = Attention(view.at("self_attn"), config, mesh)
        built: DecoderBlock = kind(view, config, attention, GatedMLP(view.at("mlp"), config, mesh))
        return built

    folder = write_original(tmp_path / "source", SPECS[name])
    found = Architecture.of(CheckpointFolder.open(folder))
    architecture = replace(found, backbone=replace(found.backbone, block=block))
    files = SafetensorFiles(folder)
    matrices = find_matrices(architecture, files, vision=False)
    if not expected:
        refused(InvalidConfig, lambda: find_smoothed(architecture, files, matrices), "smooth", "only linear layers")
        return
    norms = find_smoothed(architecture, files, matrices)
    prefix = "language_model.model.layers"
    assert {norm.name: len(norm.matrices) for norm in norms} == {
        f"{prefix}.{layer}.{name}": count for layer in range(2) for name, count in expected.items()
    }
    assert ("not smoothed" in caplog.text) == (left_alone is not None)
    assert f"layers.1.{left_alone or ''}" in caplog.text or left_alone is None
