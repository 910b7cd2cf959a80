"""OpenGVLab's own format (`InternVLChatModel`): fused qkv in the tower, the language model behind one prefix."""

from __future__ import annotations

from collections.abc import Set

from tilewise.weights.folder import ORIGINAL
from tilewise.weights.formats import CheckpointFormat, Locate
from tilewise.weights.names import NameTable, Source, part, rows

_LAYER, _THEIRS = "vision.layers.{}", "vision_model.encoder.layers.{}"

_NAMES = NameTable(
    {
        "vision.embeddings.class_embedding": Source("vision_model.embeddings.class_embedding"),
        "vision.embeddings.position_embedding": Source("vision_model.embeddings.position_embedding"),
        **rows({"vision.embeddings.patch_embedding": "vision_model.embeddings.patch_embedding"}),
        **{
            f"{_LAYER}.attn.{letter}_proj.{kind}": Source(f"{_THEIRS}.attn.qkv.{kind}", part(index, of=3))
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
        f"{_LAYER}.ls1": Source(f"{_THEIRS}.ls1"),
        f"{_LAYER}.ls2": Source(f"{_THEIRS}.ls2"),
        **rows({"projector.norm": "mlp1.0", "projector.linear_1": "mlp1.1", "projector.linear_2": "mlp1.3"}),
    }
)


def locate(names: Set[str], language: NameTable) -> Locate:
    def find(name: str) -> Source:
        if name.startswith("language."):
            source = language.source(name.removeprefix("language."))
            return source.renamed(lambda theirs: f"language_model.{theirs}")
        return _NAMES.source(name)

    return find


FORMAT = CheckpointFormat(ORIGINAL, ("qkv_bias", "qk_normalization"), locate)
