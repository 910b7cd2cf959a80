"""Tiny models as GGUF files, written with the package `gguf` as llama.cpp's converter writes them.

Names come from the package's own tables. What the converter does to tensors is written down here once more: fused
queries, keys and values are cut apart, those of llama and internlm2 turned to its order of rope, experts stacked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import TinySpec, original_tensors, write_original
from tilewise.twin.vocabularies import tokenizer as tokenizer_of

ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "internlm2": gguf.MODEL_ARCH.INTERNLM2,
    "internlm3": gguf.MODEL_ARCH.LLAMA,
}
BLOCK = 32  # numbers
Change = Callable[[dict[str, Any]], Any]


def in_blocks(spec: TinySpec) -> TinySpec:
    """The spec with widths that blocks of 32 fit into."""
    wide = replace(spec, hidden=64, heads=4, head_dim=spec.head_dim and 24, intermediate=96, expert_intermediate=32)
    wide = replace(wide, kv_heads=4 if 4 % spec.kv_heads else spec.kv_heads)
    heads = 4 if spec.vision == "300m" else 5
    return replace(wide, vision_hidden=32 * heads, vision_heads=heads, vision_intermediate=96)


def write_gguf(
    folder: Path, spec: TinySpec, kind: Type, text: str = "model.gguf", tower: str = "mmproj-model.gguf", **changed: Any
) -> Path:
    """A text and an mmproj file. `changed` are values of the metadata, by their keys with _ for dots; None = absent."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = original_tensors(spec)
    _write(folder / text, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[spec.decoder]], _text_values(spec) | changed,
           _text_tensors(spec, tensors), kind)  # fmt: skip
    _write(folder / tower, "clip", _tower_values(spec) | changed, _tower_tensors(spec, tensors), kind)
    return folder


def write_rounded(folder: Path, spec: TinySpec, kind: Type) -> Path:
    """The checkpoint in the original format and in floats, with the numbers that blocks of `kind` stand for."""
    write_original(folder, spec)
    tensors = {
        name: _rounded(tensor, kind) if _is_matrix(name.removeprefix("language_model."), tensor) else tensor
        for name, tensor in original_tensors(spec).items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def _rounded(tensor: Tensor, kind: Type) -> Tensor:
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.float().numpy(), kind), kind).copy())


def _is_matrix(name: str, tensor: Tensor) -> bool:
    """Norms, biases, small embeddings and the router stay in floats, as rows that no block fits into do."""
    router = name.endswith((".mlp.gate.weight", "ffn_gate_inp.weight"))
    return tensor.dim() in (2, 3) and name.endswith(".weight") and "pos" not in name and not router


def _write(
    path: Path, architecture: str, values: dict[str, Any], tensors: Iterator[tuple[str, Tensor]], kind: Type
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if value is not None and key.startswith(
            ("clip", "general") if architecture == "clip" else (architecture, "tokenizer", "general")
        ):
            _add(writer, key, value)
    for name, tensor in tensors:
        numbers = np.ascontiguousarray(tensor.float().numpy())
        if _is_matrix(name, tensor) and kind != Type.F32 and numbers.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds: list[tuple[type, Callable[[str, Any], None]]] = [
        (bool, writer.add_bool),
        (int, writer.add_uint32),
        (float, writer.add_float32),
        (str, writer.add_string),
        (list, writer.add_array),
    ]
    next(add for kind, add in kinds if isinstance(value, kind))(key, value)


def _text_values(spec: TinySpec) -> dict[str, Any]:
    name = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[spec.decoder]]
    moe = spec.decoder == "qwen3_moe"
    values = {
        "general.name": "Tiny",
        f"{name}.block_count": spec.layers,
        f"{name}.context_length": spec.max_position,
        f"{name}.embedding_length": spec.hidden,
        f"{name}.feed_forward_length": spec.intermediate,
        f"{name}.attention.head_count": spec.heads,
        f"{name}.attention.head_count_kv": spec.kv_heads,
        f"{name}.attention.key_length": spec.head_dim,
        f"{name}.attention.layer_norm_rms_epsilon": spec.eps,
        f"{name}.rope.freq_base": spec.rope.theta,
        f"{name}.expert_count": spec.experts if moe else None,
        f"{name}.expert_used_count": spec.experts_per_token if moe else None,
        f"{name}.expert_feed_forward_length": spec.expert_intermediate if moe else None,
    }
    return values | vocabulary_values(spec)


def vocabulary_values(spec: TinySpec) -> dict[str, Any]:
    definition = json.loads(tokenizer_of(spec.vocabulary).to_str())
    added = {token["id"]: token for token in definition["added_tokens"]}
    names = {number: token for token, number in definition["model"]["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    types = [1 if n not in added else 3 if added[n]["special"] else 4 for n in range(len(names))]
    missing = range(len(names), spec.vocab_size)
    vocabulary = spec.vocabulary
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [names[n] for n in range(len(names))] + [f"[PAD{n}]" for n in missing],
        "tokenizer.ggml.token_type": types + [5] * len(missing),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in definition["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": vocabulary.ids[vocabulary.eos],
        "tokenizer.ggml.bos_token_id": vocabulary.ids[vocabulary.start] if vocabulary.start else None,
        "tokenizer.ggml.padding_token_id": vocabulary.ids[vocabulary.pad],
        "tokenizer.ggml.add_bos_token": vocabulary.starts,
    }


def _tower_values(spec: TinySpec) -> dict[str, Any]:
    return {
        "clip.has_vision_encoder": True,
        "clip.projector_type": "internvl",
        "clip.vision.projection_dim": spec.hidden,
        "clip.vision.image_size": spec.tile_size,
        "clip.vision.patch_size": spec.patch,
        "clip.vision.embedding_length": spec.vision_hidden,
        "clip.vision.feed_forward_length": spec.vision_intermediate,
        "clip.vision.block_count": spec.vision_layers,
        "clip.vision.attention.head_count": spec.vision_heads,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.image_mean": [0.485, 0.456, 0.406],
        "clip.vision.image_std": [0.229, 0.224, 0.225],
        "clip.vision.projector.scale_factor": 2,
        "clip.vision.preproc_max_tiles": spec.max_tiles,
        "clip.use_gelu": True,
    }


def _text_tensors(spec: TinySpec, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    table = gguf.get_tensor_name_map(ARCHITECTURES[spec.decoder], spec.layers)
    experts: dict[str, list[Tensor]] = {}
    for theirs, tensor in tensors.items():
        name = theirs.removeprefix("language_model.")
        if name == theirs:
            continue
        for part, rows in _attention(spec, name, tensor):
            if ".experts." in part:
                before, _, rest = part.partition(".experts.")
                experts.setdefault(f"{before}.experts.{rest.partition('.')[2]}", []).append(rows)
            else:
                yield _named(table, part), rows
    for name, matrices in experts.items():
        yield _named(table, name), torch.stack(matrices)


def _attention(spec: TinySpec, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Queries, keys and values apart, and in the order of llama.cpp."""
    permuted = spec.decoder in ("llama", "internlm2", "internlm3")
    if ".attention.wqkv." in name:
        group = spec.heads // spec.kv_heads
        heads = tensor.unflatten(0, (spec.kv_heads, group + 2, -1))
        for letter, rows, count in (
            ("q", heads[:, :group], spec.heads),
            ("k", heads[:, group : group + 1], spec.kv_heads),
            ("v", heads[:, group + 1 :], None),
        ):
            flat = rows.flatten(0, 2)
            yield name.replace("wqkv", f"w{letter}"), flat if count is None else _permuted(flat, count)
    elif permuted and ".q_proj." in name:
        yield name, _permuted(tensor, spec.heads)
    elif permuted and ".k_proj." in name:
        yield name, _permuted(tensor, spec.kv_heads)
    else:
        yield name, tensor


def _permuted(tensor: Tensor, heads: int) -> Tensor:
    """Of each head, number n of the first half and of the second become neighbours."""
    half = len(tensor) // heads // 2
    order = [head * 2 * half + part * half + n for head in range(heads) for n in range(half) for part in range(2)]
    return tensor[order]


def _tower_tensors(spec: TinySpec, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, max(4, spec.vision_layers))  # and mlp1.3
    for name, tensor in tensors.items():
        if name.startswith("language_model."):
            continue
        name = f"vision_tower.{name}" if name.startswith("vision_model.") else name
        if ".qkv." in name:
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield _named(table, name.replace("attn.qkv", f"self_attn.{letter}_proj")), rows
        elif name.endswith((".ls1", ".ls2", "position_embedding")):
            yield _named(table, name + ".weight"), tensor
        else:
            yield _named(table, name), tensor


def _named(table: gguf.TensorNameMap, name: str) -> str:
    found = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return found
