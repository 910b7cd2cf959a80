"""The transformers-native format (`InternVLForConditionalGeneration`), in both spellings of its prefixes.

Older files say `vision_tower.` and `language_model.model.`, newer ones `model.vision_tower.` and
`model.language_model.`, with `lm_head` outside.
"""

from __future__ import annotations

from collections.abc import Set

from tilewise.weights.formats import CheckpointFormat, Locate
from tilewise.weights.names import NameTable, TensorRef, rows

_LAYER, _THEIRS = "vision.layers.{}", "vision_tower.encoder.layer.{}"
_MODULES = {
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
_ROWS = {
    "vision.embeddings.class_embedding": TensorRef("vision_tower.embeddings.cls_token"),
    "vision.embeddings.position_embedding": TensorRef("vision_tower.embeddings.position_embeddings"),
    **rows({"vision.embeddings.patch_embedding": "vision_tower.embeddings.patch_embeddings.projection"}),
    **rows({f"{_LAYER}.{ours}": f"{_THEIRS}.{theirs}" for ours, theirs in _MODULES.items()}),
    f"{_LAYER}.ls1": TensorRef(f"{_THEIRS}.lambda_1"),
    f"{_LAYER}.ls2": TensorRef(f"{_THEIRS}.lambda_2"),
    **rows(
        {
            f"projector.{ours}": f"multi_modal_projector.{theirs}"
            for ours, theirs in {"norm": "layer_norm", "linear_1": "linear_1", "linear_2": "linear_2"}.items()
        }
    ),
}


def locate(names: Set[str], language: NameTable) -> Locate:
    new_spelling = any(name.startswith("model.") for name in names)
    table = NameTable(_ROWS, prefix="model." if new_spelling else "")

    def find(name: str) -> TensorRef:
        if not name.startswith("language."):
            return table.source(name)
        source = language.source(name.removeprefix("language."))
        return source.renamed(_inside_model if new_spelling else "language_model.{}".format)

    return find


def _inside_model(name: str) -> str:
    inner = name.removeprefix("model.")
    return name if inner == name else f"model.language_model.{inner}"


FORMAT = CheckpointFormat(locate)
