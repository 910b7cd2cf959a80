"""The tensors of a tiny model: those of transformers' own classes, filled with noise, in either format.

Names and shapes come from transformers, not from our models, so that a test that compares the two compares something.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from tilewise.tools.twin.configs import hf_config
from tilewise.tools.twin.flash import flash_shapes
from tilewise.tools.twin.names import Tensors, as_published, of_blocks, original_name, qkv_together
from tilewise.tools.twin.specs import TinySpec


def hf_tensors(spec: TinySpec, seed: int = 0) -> Tensors:
    """Of transformers' model, under its own names."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(**hf_config(spec)))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if spec.tied:
        del shapes["lm_head.weight"]
    tensors = {name: noise(name, shape, seed) for name, shape in shapes.items()}
    if spec.decoder == "gpt_oss" and spec.expert_storage == "mxfp4":
        return {name: of_blocks(name, tensor) for name, tensor in tensors.items()}
    return tensors


def original_tensors(spec: TinySpec, seed: int = 0) -> Tensors:
    """The same numbers under OpenGVLab's names, packed as published; and what Flash adds."""
    theirs = as_published(hf_tensors(spec, seed), spec)
    tensors = qkv_together({original_name(name): tensor for name, tensor in theirs.items()})
    if spec.flash:
        tensors |= {name: noise(name, shape, seed) for name, shape in flash_shapes(spec).items()}
    return tensors


def noise(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Depends on seed and name; of sizes at which activations stay around one and every tensor matters.

    Norms, biases and layer scales are noise too, so that nothing is hidden behind a one or a zero.
    """
    generator = torch.Generator().manual_seed(1000 * seed + zlib.crc32(name.encode()))
    drawn = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return 0.2 * drawn
    if name.endswith("weight") and len(shape) == 1:  # of a norm
        return 1 + 0.2 * drawn
    if "lambda_" in name:
        return 0.5 + 0.2 * drawn
    inputs = _inputs(name, shape)
    return drawn / math.sqrt(inputs) if inputs else 0.5 * drawn


def _inputs(name: str, shape: tuple[int, ...]) -> int | None:
    """How many numbers a row of a matrix adds up; None for what is no matrix."""
    if len(shape) < 2 or any(part in name for part in ("embed_tokens", "cls_token", "position", "query_token")):
        return None
    if ".experts." in name:  # [experts, out, in]; GPT-OSS has [experts, in, out], of sizes near enough
        return shape[-1]
    return math.prod(shape[1:])
