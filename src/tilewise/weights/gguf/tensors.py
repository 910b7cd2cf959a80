"""Tensors of a GGUF model as slices of its mapped files, and the names that they have there.

Source of names: ggml-org/llama.cpp `gguf-py/gguf/tensor_mapping.py`; of the order of rows: `conversion/llama.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.platforms.forms import Rows
from tilewise.weights.formats import CheckpointFormat
from tilewise.weights.gguf.container import TYPES
from tilewise.weights.gguf.folder import read_index
from tilewise.weights.names import NameTable, RowSelector, TensorRef, rows
from tilewise.weights.page_cache import MappedPages

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK, _TOWER = "language.model.layers.{}", "vision.layers.{}"
_MODULES = {
    "language.model.embed_tokens": "token_embd",
    "language.model.norm": "output_norm",
    "language.lm_head": "output",
    **{
        f"{_BLOCK}.{ours}": f"blk.{{}}.{theirs}"
        for ours, theirs in {
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
        }.items()
    },
    "vision.embeddings.patch_embedding": "v.patch_embd",
    **{
        f"{_TOWER}.{ours}": f"v.blk.{{}}.{theirs}"
        for ours, theirs in {
            "attn.q_proj": "attn_q",
            "attn.k_proj": "attn_k",
            "attn.v_proj": "attn_v",
            "attn.q_norm": "attn_q_norm",
            "attn.k_norm": "attn_k_norm",
            "attn.proj": "attn_out",
            "norm1": "ln1",
            "norm2": "ln2",
        }.items()
    },
    "projector.norm": "mm.model.mlp.0",
    "projector.linear_1": "mm.model.mlp.1",
    "projector.linear_2": "mm.model.mlp.3",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """The place of a tensor: a file, and an offset in bytes. `shape` is that of its numbers."""

    file: str
    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def quantised(self) -> bool:
        return self.type not in _FLOATS


def indexed_tensors(folder: Path) -> dict[str, GgufTensor]:
    """Return all tensors of a folder that `gguf_folder` made, by name."""
    places = read_index(folder)["tensors"]
    return {name: GgufTensor(file, kind, tuple(shape), at) for name, (file, kind, shape, at) in places.items()}


class GgufFiles:
    """The `WeightFiles` of a folder that `gguf_folder` made. Quantised tensors are bytes (U8), each row its blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors = indexed_tensors(folder)
        self.names = frozenset(self._tensors)
        self._maps = {name: _mapped(folder / name) for name in {found.file for found in self._tensors.values()}}
        self._pages = MappedPages([folder / name for name in self._maps])

    def tensor(self, name: str) -> Tensor:
        """Return the whole tensor, as a view of the mapped file: nothing is copied."""
        found = self._tensors[name]
        kinds = {kind.name: kind for kind in TYPES.values()}
        kind = kinds[found.type]
        shape = (*found.shape[:-1], found.shape[-1] // kind.numbers * kind.bytes)
        stored = self._maps[found.file]
        stop = found.offset + math.prod(shape)
        if stop > len(stored):
            raise InvalidCheckpoint(f"{self.path(name)} became shorter since it was first read; {GET_AGAIN}.")
        piece = stored[found.offset : stop]
        return piece.view(shape) if found.quantised else piece.view(_FLOATS[found.type]).view(found.shape)

    def stored(self, name: str) -> StoredView:
        return StoredView(self.tensor(name))

    def dtype(self, name: str) -> str:
        found = self._tensors[name]
        return "U8" if found.quantised else found.type

    def path(self, name: str) -> Path:
        """Return the file that a tensor is in; of one that no file has, the folder."""
        return (self.folder / self._tensors[name].file).resolve() if name in self._tensors else self.folder

    def give_back(self, name: str) -> None:
        """Give back the memory that a tensor takes since it was read; it can be read again."""
        self._pages.give_back(self.tensor(name))


@dataclass(frozen=True)
class StoredView:
    """A mapped tensor to be read in part (`Stored`)."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def __getitem__(self, index: int | slice) -> Tensor:
        return self.tensor[index]


def _mapped(path: Path) -> Tensor:
    """Map a file as uint8, privately, so that nothing that is done to the tensor reaches the file."""
    try:
        return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise InvalidCheckpoint(f"{path.resolve()} cannot be read ({error}); was it moved?") from None


def with_gguf_names(layout: CheckpointFormat, folder: Path) -> CheckpointFormat:
    """Return a config's format for tensors that are named as in GGUF files."""
    table = gguf_names(folder)
    return replace(layout, locate=lambda names, language: table.source)


def gguf_names(folder: Path) -> NameTable:
    """Return the table from internal names to those of the files, which is the same for all backbones."""
    heads, tensors = read_index(folder)["permuted_heads"], indexed_tensors(folder)
    order = dict.fromkeys("qk") if heads is None else {"q": _turned_back(heads[0]), "k": _turned_back(heads[1])}
    table: dict[str, Any] = {
        **rows(_MODULES | _tower_mlp(tensors)),
        **{
            f"{_BLOCK}.self_attn.{letter}_proj.{kind}": TensorRef(f"blk.{{}}.attn_{letter}.{kind}", rows=order[letter])
            for letter in "qk"
            for kind in ("weight", "bias")
        },
        **{f"{_BLOCK}.mlp.experts.{{}}.{part}_proj.weight": _expert(part) for part in ("gate", "up", "down")},
        f"{_TOWER}.ls1": TensorRef("v.blk.{}.ls1.weight"),
        f"{_TOWER}.ls2": TensorRef("v.blk.{}.ls2.weight"),
        "vision.embeddings.class_embedding": TensorRef("v.class_embd"),
        "vision.embeddings.position_embedding": TensorRef("v.position_embd.weight"),
    }
    embedding = tensors.get("token_embd.weight")
    if "output.weight" not in tensors and embedding is not None and embedding.quantised:
        table["language.lm_head.weight"] = TensorRef("token_embd.weight")  # the same numbers, kept as they are stored
    return NameTable(table)


def _tower_mlp(tensors: dict[str, GgufTensor]) -> dict[str, str]:
    """Return the names of the tower's two MLP layers.

    Older converters swapped the two, so that `ffn_down` is the layer that leads to more numbers.
    """
    up, width = tensors.get("v.blk.0.ffn_up.weight"), tensors.get("v.blk.0.ls1.weight")
    swapped = up is not None and width is not None and up.shape[0] == width.shape[0] != up.shape[1]
    first, second = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    return {f"{_TOWER}.mlp.fc1": f"v.blk.{{}}.{first}", f"{_TOWER}.mlp.fc2": f"v.blk.{{}}.{second}"}


def _expert(part: str) -> Any:
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
