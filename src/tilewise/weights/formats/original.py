"""OpenGVLab's own format (`InternVLChatModel`): fused qkv in the tower, the language model behind one prefix."""

from __future__ import annotations

from collections.abc import Set

from tilewise.weights.formats import CheckpointFormat, Locate
from tilewise.weights.names import NameTable, TensorRef, part, rows

_LAYER, _THEIRS = "vision.layers.{}", "vision_model.encoder.layers.{}"

_FLASH_MODULES = {
    "projector": ("mlp2", {"norm": 0, "linear_1": 1, "linear_2": 4, "linear_3": 7}),
    **{f"gating.block{n}": (f"gating.block{n}", {"linear_1": 0, "linear_2": 3, "norm": 5}) for n in range(1, 5)},
    "gating.gate": ("gating.gate", {"norm": 0, "linear": 1}),
}
"""Internal module -> the torch Sequential that has it in the files, and the numbers of its layers there."""
_POOLING = "pooling_before_gating"
_FLASH = {
    **rows(
        {
            f"flash.{ours}.{name}": f"{theirs}.{number}"
            for ours, (theirs, names) in _FLASH_MODULES.items()
            for name, number in names.items()
        }
    ),
    "flash.pooling.query_token": TensorRef(f"{_POOLING}.query_token"),
    **{
        f"flash.pooling.attn{n}.{letter}_proj.{kind}": TensorRef(
            f"{_POOLING}.attn{n}.in_proj_{kind}", rows=part(index, of=3)
        )
        for n in (1, 2)
        for index, letter in enumerate("qkv")
        for kind in ("weight", "bias")
    },
    **rows({f"flash.pooling.attn{n}.out_proj": f"{_POOLING}.attn{n}.out_proj" for n in (1, 2)}),
    **rows({f"flash.pooling.norm{n}": f"{_POOLING}.norm{n}" for n in (1, 2)}),
}

_NAMES = NameTable(
    {
        "vision.embeddings.class_embedding": TensorRef("vision_model.embeddings.class_embedding"),
        "vision.embeddings.position_embedding": TensorRef("vision_model.embeddings.position_embedding"),
        **rows({"vision.embeddings.patch_embedding": "vision_model.embeddings.patch_embedding"}),
        **{
            f"{_LAYER}.attn.{letter}_proj.{kind}": TensorRef(f"{_THEIRS}.attn.qkv.{kind}", rows=part(index, of=3))
            for index, letter in enumerate("qkv")
            for kind in ("weight", "bias")
        },
        **rows(
            {
                f"{_LAYER}.{name}": f"{_THEIRS}.{name}"
                for name in (
                    "attn.proj",
                    "attn.q_norm",
                    "attn.k_norm",
                    "mlp.fc1",
                    "mlp.fc2",
                    "norm1",
                    "norm2",
                )
            }
        ),
        f"{_LAYER}.ls1": TensorRef(f"{_THEIRS}.ls1"),
        f"{_LAYER}.ls2": TensorRef(f"{_THEIRS}.ls2"),
        **rows({"projector.norm": "mlp1.0", "projector.linear_1": "mlp1.1", "projector.linear_2": "mlp1.3"}),
        **_FLASH,
    }
)


def locate(names: Set[str], language: NameTable) -> Locate:
    def find(name: str) -> TensorRef:
        if name.startswith("language."):
            source = language.source(name.removeprefix("language."))
            return source.renamed(lambda theirs: f"language_model.{theirs}")
        return _NAMES.source(name)

    return find


FORMAT = CheckpointFormat(locate)
