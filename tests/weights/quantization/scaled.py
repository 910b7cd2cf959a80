"""Matrices of compressed-tensors and of FP8, written number by number with numpy from descriptions of the layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.weights.quantization.written import Written, bit_stream


@dataclass(frozen=True)
class Scheme:
    """What a test writes: codes of some bits, or E4M3, and a scale for each block of (outputs, inputs); 0 = all."""

    block: tuple[int, int]
    bits: int = 8
    floating: bool = False
    symmetric: bool = True
    packed: bool = False
    scattered: bool = False
    """Inputs belong to groups in no order."""
    static: int | None = None
    """The zero point of rows that are rounded by a scale of calibration."""
    scales: torch.dtype = torch.bfloat16

    @property
    def weights(self) -> dict[str, Any]:
        """As config.json has it."""
        rows, columns = self.block
        strategy = {(0, 0): "tensor", (1, 0): "channel"}.get(self.block, "group" if rows == 1 else "block")
        return {
            "num_bits": self.bits,
            "type": "float" if self.floating else "int",
            "symmetric": self.symmetric,
            "strategy": strategy,
            "group_size": columns if strategy == "group" else None,
            "block_structure": [rows, columns] if strategy == "block" else None,
            "dynamic": False,
            "actorder": "group" if self.scattered else None,
            "observer": "minmax",
            "observer_kwargs": {},
        }

    def blocks(self, matrix: np.ndarray) -> np.ndarray:
        """[out, in] -> the number of the block of each, one line of blocks after the other."""
        outputs, inputs = matrix.shape
        rows, columns = self.block[0] or outputs, self.block[1] or inputs
        places = np.arange(inputs) if not self.scattered else np.random.default_rng(3).permutation(inputs)
        return np.arange(outputs)[:, None] // rows * -(-inputs // columns) + places // columns


Numbers = tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]
"""Codes [out, in] from -2^(bits - 1) on, float32 scales and zero points [lines of blocks, blocks], numbers meant."""
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()


def numbers_of(matrix: Tensor, scheme: Scheme) -> Numbers:
    """Rounded to the nearest code that a scheme has."""
    values, blocks = matrix.double().numpy(), scheme.blocks(matrix.numpy())
    lines = -(-len(values) // (scheme.block[0] or len(values)))
    flat = [values[blocks == number] for number in range(blocks.max() + 1)]
    least, most = -(2 ** (scheme.bits - 1)), 2 ** (scheme.bits - 1) - 1
    low = np.array([min(part.min(), 0) for part in flat])
    high = np.array([max(part.max(), 0) for part in flat])
    zeros = np.zeros(len(flat))
    if scheme.floating:
        scales = np.maximum(-low, high) / 448
    elif scheme.symmetric:
        scales = np.maximum(-low, high) / max(most, 1)
    else:
        scales = (high - low) / (most - least)
    scales = torch.from_numpy(scales).to(scheme.scales).float().numpy()
    if not scheme.symmetric:
        zeros = np.clip(np.round(least - low / scales), least, most)
    scaled = values / scales[blocks]
    if scheme.floating:
        codes = torch.from_numpy(scaled).float().clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        meant = E4M3[codes] * scales[blocks]
    else:
        codes = np.clip(np.round(scaled) + zeros[blocks], least, most).astype(np.int64)
        meant = ((codes - zeros[blocks]) * scales[blocks].astype(np.float64)).astype(np.float32)
    shape = (lines, -1)
    return codes, scales.reshape(shape), zeros.reshape(shape).astype(np.int64), torch.from_numpy(meant)


def compressed(scheme: Scheme) -> Callable[[str, Tensor], Written]:
    """One layer as compressed-tensors keeps it."""

    def quantise(module: str, matrix: Tensor) -> Written:
        codes, scales, zeros, meant = numbers_of(matrix, scheme)
        middle = 2 ** (scheme.bits - 1)
        shape = (1,) if scheme.block == (0, 0) else scales.shape
        tensors = {".weight_scale": torch.from_numpy(scales).to(scheme.scales).reshape(shape)}
        if scheme.packed:
            tensors[".weight_packed"] = _words(codes + middle, scheme.bits).contiguous()
            tensors[".weight_shape"] = torch.tensor(matrix.shape)
        elif scheme.floating:
            tensors[".weight"] = torch.from_numpy(codes).view(torch.float8_e4m3fn)
        else:
            tensors[".weight"] = torch.from_numpy(codes.astype(np.int8))
        if not scheme.symmetric:
            along = _words(zeros.T + middle, scheme.bits).T.contiguous()
            plain = torch.from_numpy(zeros.astype(np.int8)).reshape(shape)
            tensors[".weight_zero_point"] = along if scheme.packed and len(shape) == 2 else plain
        if scheme.scattered:
            tensors[".weight_g_idx"] = torch.from_numpy(scheme.blocks(matrix.numpy())[0].astype(np.int32))
        if scheme.static is not None:
            tensors[".input_scale"] = torch.tensor([0.03], dtype=scheme.scales)
        if scheme.static:
            tensors[".input_zero_point"] = torch.tensor([scheme.static], dtype=torch.int8)
        return tensors, meant

    return quantise


def _words(codes: np.ndarray, bits: int) -> Tensor:
    """Codes [n, m] along the second axis -> int32 [n, words]; what is left of the last word is zeros."""
    words = -(-codes.shape[1] * bits // 32)
    most = 32 * (words + bits) // bits
    padded = np.zeros((most - most % 32, len(codes)), dtype=np.int64)
    padded[: codes.shape[1]] = codes.T
    return bit_stream(padded, bits).T[:, :words]


def in_fp8(scheme: Scheme, name: str, shape: tuple[int, ...] | None = None) -> Callable[[str, Tensor], Written]:
    """One layer as DeepSeek's and vLLM's older tools keep it: `name` is that of the scales."""

    def quantise(module: str, matrix: Tensor) -> Written:
        codes, scales, _, meant = numbers_of(matrix, replace(scheme, floating=True))
        stored = torch.from_numpy(scales).to(scheme.scales)
        tensors = {
            ".weight": torch.from_numpy(codes).view(torch.float8_e4m3fn),
            f".{name}": stored if shape is None else stored.reshape(shape),
        }
        if scheme.static is not None:
            tensors[".input_scale"] = torch.tensor(0.03)
        return tensors, meant

    return quantise
