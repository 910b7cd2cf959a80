"""Checkpoint formats: how a kind of checkpoint names and packs its tensors. Each is a function and a row of `_FORMATS`.

Source of GGUF's names: ggml-org/llama.cpp `gguf-py/gguf/tensor_mapping.py`; of their order of rows:
`conversion/llama.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import torch

from tilewise.platforms.forms import Rows
from tilewise.weights.adapter import adapted_name
from tilewise.weights.folder import CheckpointFolder, format_name
from tilewise.weights.gguf import GgufTensor, indexed_tensors, is_gguf_folder, read_index
from tilewise.weights.names import NameTable, RowSelector, TensorRef, part, pattern_of, rows

Locate = Callable[[str], TensorRef]
CheckpointFormat = Callable[[Set[str], NameTable], Locate]
"""Function (tensor names in the files, the backbone's table) -> (internal name -> place in the files)."""

_LAYER, _BLOCK = "vision.layers.{}", "language.model.layers.{}"


def format_of(folder: CheckpointFolder) -> CheckpointFormat:
    """Return the format of a checkpoint's architecture. Raises InvalidCheckpoint as `format_name` does."""
    _, found = _FORMATS[format_name(folder)]
    return _gguf(folder.path) if is_gguf_folder(folder.path) else found


def is_of_encoder(name: str) -> bool:
    """True for a tensor that tiles are encoded with, by its name in safetensors, in whatever form it is kept."""
    pattern = pattern_of(adapted_name(name).removeprefix("model."))
    return pattern in _ENCODER_NAMES or pattern.rpartition(".")[0] in _ENCODER_MODULES


def _inside(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{ours}": theirs for ours, theirs in names.items()}


# OpenGVLab's own format (`InternVLChatModel`): fused qkv in the tower, the language model behind one prefix.

_THEIRS = "vision_model.encoder.layers.{}"
_SAME = ("attn.proj", "attn.q_norm", "attn.k_norm", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
_FLASH_MODULES = {
    "projector": ("mlp2", {"norm": 0, "linear_1": 1, "linear_2": 4, "linear_3": 7}),
    **{f"gating.block{n}": (f"gating.block{n}", {"linear_1": 0, "linear_2": 3, "norm": 5}) for n in range(1, 5)},
    "gating.gate": ("gating.gate", {"norm": 0, "linear": 1}),
}
"""Internal module -> the torch Sequential that has it in the files, and the numbers of its layers there."""
_POOLING = "pooling_before_gating"


def _packed_qkv(ours: str, theirs: str) -> dict[str, TensorRef]:
    """Return rows for projections of queries, keys and values that are thirds of one tensor, `theirs` and its kind."""
    return {
        f"{ours}.{letter}_proj.{kind}": TensorRef(f"{theirs}{kind}", rows=part(index, of=3))
        for index, letter in enumerate("qkv")
        for kind in ("weight", "bias")
    }


_FLASH = {
    **rows(
        {
            f"flash.{ours}.{name}": f"{theirs}.{number}"
            for ours, (theirs, names) in _FLASH_MODULES.items()
            for name, number in names.items()
        }
    ),
    "flash.pooling.query_token": TensorRef(f"{_POOLING}.query_token"),
    **_packed_qkv("flash.pooling.attn1", f"{_POOLING}.attn1.in_proj_"),
    **_packed_qkv("flash.pooling.attn2", f"{_POOLING}.attn2.in_proj_"),
    **rows({f"flash.pooling.attn{n}.out_proj": f"{_POOLING}.attn{n}.out_proj" for n in (1, 2)}),
    **rows({f"flash.pooling.norm{n}": f"{_POOLING}.norm{n}" for n in (1, 2)}),
}
_ORIGINAL = {
    "vision.embeddings.class_embedding": TensorRef("vision_model.embeddings.class_embedding"),
    "vision.embeddings.position_embedding": TensorRef("vision_model.embeddings.position_embedding"),
    **rows({"vision.embeddings.patch_embedding": "vision_model.embeddings.patch_embedding"}),
    **_packed_qkv(f"{_LAYER}.attn", f"{_THEIRS}.attn.qkv."),
    **rows(_inside(_LAYER, {name: f"{_THEIRS}.{name}" for name in _SAME})),
    f"{_LAYER}.ls1": TensorRef(f"{_THEIRS}.ls1"),
    f"{_LAYER}.ls2": TensorRef(f"{_THEIRS}.ls2"),
    **rows({"projector.norm": "mlp1.0", "projector.linear_1": "mlp1.1", "projector.linear_2": "mlp1.3"}),
    **_FLASH,
}


def _original(names: Set[str], language: NameTable) -> Locate:
    table = NameTable(_ORIGINAL)

    def locate(name: str) -> TensorRef:
        if name.startswith("language."):
            return language.source(name.removeprefix("language.")).renamed("language_model.{}".format)
        return table.source(name)

    return locate


# The transformers-native format (`InternVLForConditionalGeneration`), in both spellings of its prefixes: older files
# say `vision_tower.` and `language_model.model.`, newer ones `model.vision_tower.` and `model.language_model.`, with
# `lm_head` outside.

_HF_THEIRS = "vision_tower.encoder.layer.{}"
_HF_MODULES = {
    "attn.q_proj": "attention.q_proj",
    "attn.k_proj": "attention.k_proj",
    "attn.v_proj": "attention.v_proj",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "attn.proj": "attention.projection_layer",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
_HF = {
    "vision.embeddings.class_embedding": TensorRef("vision_tower.embeddings.cls_token"),
    "vision.embeddings.position_embedding": TensorRef("vision_tower.embeddings.position_embeddings"),
    **rows({"vision.embeddings.patch_embedding": "vision_tower.embeddings.patch_embeddings.projection"}),
    **rows(_inside(_LAYER, {ours: f"{_HF_THEIRS}.{theirs}" for ours, theirs in _HF_MODULES.items()})),
    f"{_LAYER}.ls1": TensorRef(f"{_HF_THEIRS}.lambda_1"),
    f"{_LAYER}.ls2": TensorRef(f"{_HF_THEIRS}.lambda_2"),
    **rows({"projector.norm": "multi_modal_projector.layer_norm"}),
    **rows({f"projector.{name}": f"multi_modal_projector.{name}" for name in ("linear_1", "linear_2")}),
}


def _hf(names: Set[str], language: NameTable) -> Locate:
    new_spelling = any(name.startswith("model.") for name in names)
    table = NameTable(_HF, prefix="model." if new_spelling else "")

    def locate(name: str) -> TensorRef:
        if not name.startswith("language."):
            return table.source(name)
        source = language.source(name.removeprefix("language."))
        return source.renamed(_inside_model if new_spelling else "language_model.{}".format)

    return locate


def _inside_model(name: str) -> str:
    inner = name.removeprefix("model.")
    return name if inner == name else f"model.language_model.{inner}"


_FORMATS: dict[str, tuple[dict[str, TensorRef], CheckpointFormat]] = {
    "original": (_ORIGINAL, _original),
    "hf": (_HF, _hf),
}
"""Rows for all that tiles are encoded with, and the format itself, by the names that `folder.FORMATS` has for them."""
_ENCODER_NAMES = {pattern_of(row.name) for table, _ in _FORMATS.values() for row in table.values()}
_ENCODER_MODULES = {name.rpartition(".")[0] for name in _ENCODER_NAMES}


# GGUF: all families of decoders have the same names, and their metadata the order of rows.

_GGUF_DECODER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_GGUF_TOWER = {
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "attn.proj": "attn_out",
    "norm1": "ln1",
    "norm2": "ln2",
}
_GGUF_MODULES = {
    "language.model.embed_tokens": "token_embd",
    "language.model.norm": "output_norm",
    "language.lm_head": "output",
    **_inside(_BLOCK, {ours: f"blk.{{}}.{theirs}" for ours, theirs in _GGUF_DECODER.items()}),
    "vision.embeddings.patch_embedding": "v.patch_embd",
    **_inside(_LAYER, {ours: f"v.blk.{{}}.{theirs}" for ours, theirs in _GGUF_TOWER.items()}),
    "projector.norm": "mm.model.mlp.0",
    "projector.linear_1": "mm.model.mlp.1",
    "projector.linear_2": "mm.model.mlp.3",
}


def _gguf(folder: Path) -> CheckpointFormat:
    heads, tensors = read_index(folder)["permuted_heads"], indexed_tensors(folder)
    order = dict.fromkeys("qk") if heads is None else {"q": _turned_back(heads[0]), "k": _turned_back(heads[1])}
    table: dict[str, Any] = {
        **rows(_GGUF_MODULES | _gguf_mlp(tensors)),
        **{
            f"{_BLOCK}.self_attn.{letter}_proj.{kind}": TensorRef(f"blk.{{}}.attn_{letter}.{kind}", rows=order[letter])
            for letter in "qk"
            for kind in ("weight", "bias")
        },
        **{f"{_BLOCK}.mlp.experts.{{}}.{part}_proj.weight": _gguf_expert(part) for part in ("gate", "up", "down")},
        f"{_LAYER}.ls1": TensorRef("v.blk.{}.ls1.weight"),
        f"{_LAYER}.ls2": TensorRef("v.blk.{}.ls2.weight"),
        "vision.embeddings.class_embedding": TensorRef("v.class_embd"),
        "vision.embeddings.position_embedding": TensorRef("v.position_embd.weight"),
    }
    embedding = tensors.get("token_embd.weight")
    if "output.weight" not in tensors and embedding is not None and embedding.quantised:
        table["language.lm_head.weight"] = TensorRef("token_embd.weight")  # the same numbers, kept as they are stored
    return lambda names, language: NameTable(table).source


def _gguf_mlp(tensors: dict[str, GgufTensor]) -> dict[str, str]:
    """Return the names of the tower's two MLP layers.

    Older converters swapped the two, so that `ffn_down` is the layer that leads to more numbers.
    """
    up, width = tensors.get("v.blk.0.ffn_up.weight"), tensors.get("v.blk.0.ls1.weight")
    swapped = up is not None and width is not None and up.shape[0] == width.shape[0] != up.shape[1]
    first, second = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    return {f"{_LAYER}.mlp.fc1": f"v.blk.{{}}.{first}", f"{_LAYER}.mlp.fc2": f"v.blk.{{}}.{second}"}


def _gguf_expert(part: str) -> Any:
    """Return a row for the experts of a layer, which are one tensor."""
    return lambda layer, expert: TensorRef(f"blk.{{}}.ffn_{part}_exps.weight", item=expert)


def _turned_back(heads: int) -> RowSelector:
    """Return a reordering of the rows of queries or keys from the file's order to that of Tilewise.

    Rope rotates neighbouring numbers of a head in these files, and numbers half a head apart in Tilewise.
    """

    def order(count: int) -> Rows:
        if count % (2 * heads):
            return slice(None)
        return torch.arange(count).view(heads, -1, 2).transpose(1, 2).flatten()

    return order
