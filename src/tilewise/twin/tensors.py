"""The tensors of a tiny model: those of transformers' own classes, filled with noise, in either format.

Names and shapes come from transformers, not from our models, so that a test that compares the two compares something.
"""

from __future__ import annotations

import math
import zlib
from functools import cache

import torch
from torch import Tensor

from tilewise.twin.configs import hf_config
from tilewise.twin.specs import TinySpec

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of the codes 0 to 7 of MXFP4; the codes 8 to 15 are their negatives."""
_BIAS = 127
"""Number that is added to the exponent of a scale, so that it is stored as an unsigned byte."""


def quantise(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round weights [..., n * 32] to MXFP4: codes of four bits, of which 32 share a scale, a power of two.

    Returns uint8 blocks [..., n, 16] of two codes each, low nibble first; uint8 scales [..., n]; and the values
    [..., n * 32] that they stand for. Weights that are such values come back as they are.
    """
    magnitudes = torch.tensor(_MAGNITUDES)
    grouped = weights.float().unflatten(-1, (-1, 32))
    exponents = (grouped.abs().amax(-1) / _MAGNITUDES[-1]).log2().ceil()
    scaled = grouped / 2 ** exponents[..., None]
    codes = (scaled.abs()[..., None] - magnitudes).abs().argmin(-1)
    values = magnitudes[codes] * scaled.sign() * 2 ** exponents[..., None]
    codes = codes + 8 * (scaled < 0)
    blocks = codes[..., ::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), (exponents + _BIAS).to(torch.uint8), values.flatten(-2)


Tensors = dict[str, Tensor]

_TO_OLD = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("output.", "language_model.output."),
)
_TO_ORIGINAL = (
    ("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    ("vision_tower.embeddings.patch_embeddings.projection.", "vision_model.embeddings.patch_embedding."),
    ("vision_tower.encoder.layer.", "vision_model.encoder.layers."),
    (".attention.projection_layer.", ".attn.proj."),
    (".attention.", ".attn."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".lambda_", ".ls"),
    ("multi_modal_projector.layer_norm.", "mlp1.0."),
    ("multi_modal_projector.linear_1.", "mlp1.1."),
    ("multi_modal_projector.linear_2.", "mlp1.3."),
)
_TO_INTERNLM2 = (
    ("embed_tokens", "tok_embeddings"),
    ("lm_head", "output"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.down_proj", "feed_forward.w2"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
)
_EXPERTS = ".mlp.experts."


def old_name(name: str) -> str:
    """Return a tensor's name as -hf files had it before transformers 5."""
    for new, old in _TO_OLD:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name.removeprefix("model.")


def original_name(name: str) -> str:
    name = old_name(name)
    if name.startswith("language_model."):
        return name
    for theirs, original in _TO_ORIGINAL:
        name = name.replace(theirs, original)
    return name


def as_published(theirs: Tensors, spec: TinySpec) -> Tensors:
    """Pack the decoder's tensors as its family's own files have them, still under the -hf format's prefixes."""
    match spec.decoder:
        case "qwen3_moe":
            return experts_apart(theirs)
        case "internlm2":
            return _internlm2(theirs, spec)
        case "gpt_oss" if spec.expert_storage == "mxfp4":
            return _in_blocks(theirs)
        case _:
            return theirs


def qkv_together(theirs: Tensors) -> Tensors:
    """Stack queries, keys and values of the tower into one tensor."""
    packed: Tensors = {}
    for name, tensor in theirs.items():
        if ".attn.q_proj." in name:
            parts = [theirs[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            packed[name.replace("q_proj", "qkv")] = torch.cat(parts)
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            packed[name] = tensor
    return packed


def experts_apart(tensors: Tensors) -> Tensors:
    """Split fused experts, which lie along the first axis with gate above up, into matrices of their own."""
    apart: Tensors = {}
    for name, tensor in tensors.items():
        if _EXPERTS not in name:
            apart[name] = tensor
            continue
        module, _, fused = name.partition(_EXPERTS)
        for number, matrix in enumerate(tensor):
            one = f"{module}{_EXPERTS}{number}."
            if fused == "gate_up_proj":
                half = len(matrix) // 2
                apart[f"{one}gate_proj.weight"] = matrix[:half].clone()
                apart[f"{one}up_proj.weight"] = matrix[half:].clone()
            else:
                apart[f"{one}down_proj.weight"] = matrix.clone()
    return apart


def of_blocks(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of GPT-OSS; if it holds experts' weights [in, out], they are rounded to what MXFP4 can say."""
    return quantise(tensor.transpose(1, 2))[2].transpose(1, 2).contiguous() if _is_blocked(name) else tensor


def _in_blocks(tensors: Tensors) -> Tensors:
    packed: Tensors = {}
    for name, tensor in tensors.items():
        if _is_blocked(name):
            packed[f"{name}_blocks"], packed[f"{name}_scales"], _ = quantise(tensor.transpose(1, 2))
        else:
            packed[name] = tensor
    return packed


def _is_blocked(name: str) -> bool:
    return name.endswith((f"{_EXPERTS}gate_up_proj", f"{_EXPERTS}down_proj"))


def _internlm2(tensors: Tensors, spec: TinySpec) -> Tensors:
    """Return Llama's tensors as InternLM2's: in wqkv, query heads, then the key head they share, then its value."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if "language_model" not in name and not name.startswith("lm_head"):
            found[name] = tensor
        elif "self_attn.q_proj" in name:
            width, group = len(tensor) // spec.heads, spec.heads // spec.kv_heads
            queries = tensor.split(width)
            keys = tensors[name.replace("q_proj", "k_proj")].split(width)
            values = tensors[name.replace("q_proj", "v_proj")].split(width)
            heads: list[Tensor] = []
            for number in range(spec.kv_heads):
                heads += [*queries[number * group : (number + 1) * group], keys[number], values[number]]
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(heads)
        elif "self_attn.k_proj" not in name and "self_attn.v_proj" not in name:
            for llama, internlm2 in _TO_INTERNLM2:
                name = name.replace(llama, internlm2)
            found[name] = tensor
    return found


Shape = tuple[int, ...]


def flash_shapes(spec: TinySpec) -> dict[str, Shape]:
    """Return the tensors that Flash adds, by name and shape, as the original format has them.

    All four stages of pooling are stored, though two are in use. Source of names and shapes:
    `modeling_internvl_chat.py` of InternVL3.5-Flash (arXiv 2508.18265).
    """
    width, hidden = spec.vision_hidden, spec.hidden
    shapes: dict[str, Shape] = {
        **_norm("mlp2.0", 16 * width),
        **_linear("mlp2.1", 16 * width, 2 * hidden),
        **_linear("mlp2.4", 2 * hidden, 2 * hidden),
        **_linear("mlp2.7", 2 * hidden, hidden),
        "pooling_before_gating.query_token": (1, width),
        **_norm("gating.gate.0", width),
        **_linear("gating.gate.1", width, 2),
    }
    for number in range(1, 5):
        shapes |= _pooling_stage(number, width) | _gating_block(f"gating.block{number}", width)
    return shapes


def _pooling_stage(number: int, width: int) -> dict[str, Shape]:
    attention = f"pooling_before_gating.attn{number}"
    return {
        f"{attention}.in_proj_weight": (3 * width, width),
        f"{attention}.in_proj_bias": (3 * width,),
        **_linear(f"{attention}.out_proj", width, width),
        **_norm(f"pooling_before_gating.norm{number}", width),
    }


def _gating_block(name: str, width: int) -> dict[str, Shape]:
    return {
        **_linear(f"{name}.0", width, 4 * width),
        **_linear(f"{name}.3", 4 * width, width),
        **_norm(f"{name}.5", width),
    }


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


@cache
def _hf_shapes(spec: TinySpec) -> tuple[tuple[str, Shape], ...]:
    """Return names and shapes of transformers' model, which takes longer to make than its numbers to draw."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(**hf_config(spec)))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if spec.tied:
        del shapes["lm_head.weight"]
    return tuple(shapes.items())


def hf_tensors(spec: TinySpec, seed: int = 0) -> Tensors:
    """Return the tensors of transformers' model, under its own names."""
    tensors = {name: noise(name, shape, seed) for name, shape in _hf_shapes(spec)}
    if spec.decoder == "gpt_oss" and spec.expert_storage == "mxfp4":
        return {name: of_blocks(name, tensor) for name, tensor in tensors.items()}
    return tensors


def original_tensors(spec: TinySpec, seed: int = 0) -> Tensors:
    """Return the numbers of `hf_tensors` under OpenGVLab's names, packed as published; and what Flash adds."""
    theirs = as_published(hf_tensors(spec, seed), spec)
    tensors = qkv_together({original_name(name): tensor for name, tensor in theirs.items()})
    if spec.flash:
        tensors |= {name: noise(name, shape, seed) for name, shape in flash_shapes(spec).items()}
    return tensors


def noise(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw a tensor by seed and name, of a size at which activations stay around one and every tensor matters.

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
    """Return how many numbers each output of a matrix adds up; None for a tensor that is no matrix."""
    if len(shape) < 2 or any(part in name for part in ("embed_tokens", "cls_token", "position", "query_token")):
        return None
    if ".experts." in name:  # [experts, out, in]; GPT-OSS has [experts, in, out], of sizes near enough
        return shape[-1]
    return math.prod(shape[1:])
