"""From transformers' names and packing to those of older -hf files and of OpenGVLab's own format."""

from __future__ import annotations

import torch
from torch import Tensor

from tilewise.tools.twin.mxfp4 import quantise
from tilewise.tools.twin.specs import TinySpec

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
    """As in -hf files before transformers 5."""
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
    """The decoder packed as its family's own files are, still under the -hf format's prefixes."""
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
    """Queries, keys and values of the tower stacked into one."""
    packed: Tensors = {}
    for name, tensor in theirs.items():
        if ".attn.q_proj." in name:
            parts = [theirs[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            packed[name.replace("q_proj", "qkv")] = torch.cat(parts)
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            packed[name] = tensor
    return packed


def experts_apart(tensors: Tensors) -> Tensors:
    """Fused experts, one after the other along the first axis and gate above up, as matrices of their own."""
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
    """A tensor of GPT-OSS with each expert's weights [in, out] rounded to what MXFP4 can say."""
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
    """Llama's tensors as InternLM2 has them: in wqkv, query heads, then the key head they share, then its value."""
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
