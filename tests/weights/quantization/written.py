"""Twins whose decoder is written quantised, and the same twin with the numbers that its codes stand for.

Everything here is written number by number with numpy, from descriptions of the layouts, and shares no code with what
reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.tiny import SPECS, TinySpec, write_original
from tests.weights.broken import change_config, change_tensors

SPEC = replace(SPECS["qwen2-300m"], hidden=64, heads=4, kv_heads=2, intermediate=96, head_dim=16)
"""Widths that can be cut into groups of 32 and packed into whole words."""
LINEAR = (".q_proj", ".k_proj", ".v_proj", ".o_proj", ".gate_proj", ".up_proj", ".down_proj")

Written = tuple[dict[str, Tensor], Tensor]
"""Tensors by the ends of their names, and the matrix [out, in] in float32 that they stand for."""


def of_the_decoder(module: str) -> bool:
    return "language_model" in module and module.endswith(LINEAR)


def write_pair(
    folder: Path,
    quantise: Callable[[str, Tensor], Written],
    config: dict[str, Any],
    spec: TinySpec = SPEC,
    write: Callable[[Path, TinySpec], Path] = write_original,
    which: Callable[[str], bool] = of_the_decoder,
) -> tuple[Path, Path]:
    """Folders of the quantised twin, and of the one in floats; `which` modules are quantised."""
    stored, floats = write(folder / "stored", spec), write(folder / "floats", spec)
    rounded: dict[str, Written] = {}

    def replace_by(kept: int) -> Callable[[dict[str, Tensor]], None]:
        def change(tensors: dict[str, Tensor]) -> None:
            for name in [name for name in tensors if name.endswith(".weight")]:
                module = name.removesuffix(".weight")
                if which(module):
                    tensor = tensors.pop(name)
                    if module not in rounded:  # the other twin has the same
                        rounded[module] = quantise(module, tensor)
                    written, meant = rounded[module]
                    ours = {f"{module}{end}": tensor.contiguous() for end, tensor in written.items()}
                    tensors.update((ours, {name: meant})[kept])

        return change

    change_tensors(stored, replace_by(0))
    change_tensors(floats, replace_by(1))
    change_config(stored, **config)
    return stored, floats


def codes_of(matrix: Tensor, bits: int, group: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [in, out], zero points [groups, out] and float16 scales [groups, out] of a matrix [out, in]."""
    columns, most = matrix.double().numpy().T, 2**bits - 1
    groups = columns.reshape(-1, group, columns.shape[1])
    if symmetric:
        scales = (np.abs(groups).max(1) / (most // 2)).astype(np.float16)
        zeros = np.full(scales.shape, 2 ** (bits - 1), dtype=np.int64)
    else:
        low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
        scales = ((high - low) / most).astype(np.float16)
        zeros = np.clip(np.round(-low / scales), 0, most).astype(np.int64)
    codes = np.clip(np.round(groups / scales[:, None]) + zeros[:, None], 0, most).astype(np.int64)
    return codes.reshape(columns.shape), zeros, scales


def numbers_of(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: np.ndarray) -> Tensor:
    """float32 [out, in] of codes [in, out], of which input i is in group groups[i]."""
    return torch.from_numpy(((codes - zeros[groups]) * scales[groups].astype(np.float32)).T.astype(np.float32).copy())


def bit_stream(codes: np.ndarray, bits: int) -> Tensor:
    """Codes [n, m] along the first axis -> int32 [n * bits / 32, m], a stream of bits with the lowest first."""
    words = np.zeros((len(codes) * bits // 32, codes.shape[1]), dtype=np.uint32)
    for place, row in enumerate(codes):
        for bit in range(bits):
            at = place * bits + bit
            words[at // 32] |= (((row >> bit) & 1) << (at % 32)).astype(np.uint32)
    return torch.from_numpy(words.view(np.int32).copy())
