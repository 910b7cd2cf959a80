"""The tiny checkpoints of tests: twins of published ones, by short names, and structures that none of those has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tilewise.twin.configs import ARCHITECTURES, hf_config, original_config
from tilewise.twin.specs import TWINS, TinySpec, full_size
from tilewise.twin.tensors import hf_tensors, original_tensors
from tilewise.twin.vocabularies import VOCABULARIES
from tilewise.twin.vocabularies import tokenizer as tokenizer_of
from tilewise.twin.write import write_hf, write_original

__all__ = [
    "ARCHITECTURES",
    "END_IDS",
    "IMAGE_ID",
    "SPECIAL_IDS",
    "SPECS",
    "TWINS",
    "VARIANTS",
    "TinySpec",
    "full_size",
    "hf_config",
    "hf_tensors",
    "original_config",
    "original_tensors",
    "reference_model",
    "tokenizer",
    "write_hf",
    "write_original",
]

VARIANTS: dict[str, TinySpec] = {
    "qwen2-6b-head": TinySpec(vision="6b", head_dim=10, vision_hidden=40, vision_heads=5, vocab=300),
    "qwen2-tied-28px": TinySpec(tied=True, tile_size=28, heads=3, kv_heads=3, hidden=42),
    "qwen3-6b-tied": TinySpec(decoder="qwen3", vision="6b", tied=True, head_dim=8, heads=4, kv_heads=1, hidden=44),
    "qwen3moe-6b-head": TinySpec(
        decoder="qwen3_moe", vision="6b", head_dim=14, kv_heads=1, experts=5, experts_per_token=3, renormalise=False
    ),
}
"""What configs can say and no published one does: tied embeddings, odd tiles, other shares of heads and experts."""

SPECS: dict[str, TinySpec] = {
    "qwen2-300m": TWINS["InternVL3-8B"],
    "qwen3-300m-head": TWINS["InternVL3_5-4B"],
    "llama-6b": TWINS["InternVL2-40B"],
    "internlm2-300m": TWINS["InternVL2_5-8B"],
    "internlm3-300m-head": TWINS["InternVL3-9B"],
    "phi3-300m": TWINS["InternVL2-4B"],
    "qwen3moe-300m-head": TWINS["InternVL3_5-30B-A3B"],
    "gptoss-300m-head": TWINS["InternVL3_5-GPT-OSS-20B-A4B-Preview"],
    **VARIANTS,
}
"""One of each decoder, and the variants."""

_VOCABULARY = VOCABULARIES["qwen2.5"]
SPECIAL_IDS, IMAGE_ID = _VOCABULARY.ids, _VOCABULARY.image_id
"""Of the vocabulary that a spec has unless it says otherwise."""
END_IDS = tuple(_VOCABULARY.ids[token] for token in _VOCABULARY.ends)


def tokenizer() -> Any:
    """The tokenizer that a spec has unless it says otherwise."""
    return tokenizer_of(_VOCABULARY)


def reference_model(folder_hf: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model of a folder that `write_hf` wrote: plain attention and experts, ready for inference."""
    from transformers import InternVLForConditionalGeneration

    with torch.inference_mode(False):  # Phi-3 changes its frequencies in place, in and out of inference mode
        model = InternVLForConditionalGeneration.from_pretrained(
            folder_hf, dtype=dtype, attn_implementation="eager", experts_implementation="eager", local_files_only=True
        )
    return model.eval()
