"""Tiny random checkpoints, written from one table in the original and in the -hf format with the same numbers.

The tensors are those of transformers' own `InternVLForConditionalGeneration`, filled with noise (norms, biases and
layer scales too, so that nothing is hidden behind a one or a zero); the other formats are the same tensors renamed,
and packed or taken apart as the published files are.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
_MERGES = (("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("i", "n"), ("a", "n"), ("Ġ", "a"), ("e", "r"), ("o", "n"))
_FIRST_SPECIAL = 256 + len(_MERGES)
SPECIAL_IDS = {token: _FIRST_SPECIAL + offset for offset, token in enumerate(SPECIALS)}
IMAGE_ID = SPECIAL_IDS["<IMG_CONTEXT>"]
END_IDS = (SPECIAL_IDS["<|im_end|>"], SPECIAL_IDS["<|endoftext|>"])


Kind = Literal["qwen2", "qwen3", "llama", "internlm2", "internlm3", "phi3", "qwen3_moe"]
ARCHITECTURES: dict[Kind, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


@dataclass(frozen=True)
class TinySpec:
    """One tiny model. Two layers each, and widths that are no powers of two."""

    decoder: Kind = "qwen2"
    """internlm2 and internlm3 are so called in the original format only: the -hf format makes them llama."""
    vision: Literal["300m", "6b"] = "300m"
    """300m: layer norm, biases on q, k, v. 6b: RMS norm, norms of whole queries and keys, no such biases."""
    tied: bool = False
    """Tied checkpoints store no lm_head."""
    head_dim: int | None = None
    """None = hidden / heads, and then config.json does not say it."""
    heads: int = 6
    kv_heads: int = 2
    layers: int = 2
    hidden: int = 36
    intermediate: int = 52
    vocab: int = 291
    max_position: int = 512
    rope_theta: float = 1e6
    dynamic_rope: bool = False
    """As InternVL3 says: rope scaling dynamic with factor 2, which does nothing up to max_position."""
    longrope_from: int | None = None
    """phi3: the length up to which its short factors hold; None = plain rope."""
    experts: int = 6
    experts_per_token: int = 2
    expert_intermediate: int = 22
    """qwen3_moe, whose `intermediate` says nothing."""
    renormalise: bool = True
    tile_size: int = 56
    patch: int = 14
    vision_layers: int = 2
    vision_hidden: int = 24
    vision_heads: int = 3
    vision_intermediate: int = 44
    max_tiles: int = 12

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile_size // self.patch // 2) ** 2

    @property
    def hf_decoder(self) -> Kind:
        return "llama" if self.decoder in ("internlm2", "internlm3") else self.decoder


SPECS: dict[str, TinySpec] = {
    "qwen2-300m": TinySpec(dynamic_rope=True),
    "qwen2-6b-head": TinySpec(vision="6b", head_dim=10, vision_hidden=40, vision_heads=5, vocab=300),
    "qwen2-tied-28px": TinySpec(tied=True, tile_size=28, heads=3, kv_heads=3, hidden=42),
    "qwen3-300m-head": TinySpec(decoder="qwen3", head_dim=16),
    "qwen3-6b-tied": TinySpec(decoder="qwen3", vision="6b", tied=True, head_dim=8, heads=4, kv_heads=1, hidden=44),
    "llama-6b": TinySpec(decoder="llama", vision="6b", heads=4, kv_heads=2, hidden=40, rope_theta=5e6),
    "internlm2-300m": TinySpec(decoder="internlm2", dynamic_rope=True),
    "internlm3-300m-head": TinySpec(decoder="internlm3", dynamic_rope=True, head_dim=10, heads=4, rope_theta=5e7),
    "phi3-300m": TinySpec(decoder="phi3", longrope_from=256, max_position=1024, rope_theta=1e4),
    "qwen3moe-300m-head": TinySpec(decoder="qwen3_moe", head_dim=8, heads=4),
    "qwen3moe-6b-head": TinySpec(
        decoder="qwen3_moe", vision="6b", head_dim=14, kv_heads=1, experts=5, experts_per_token=3, renormalise=False
    ),
}


def write_hf(
    folder: Path,
    spec: TinySpec,
    seed: int = 0,
    spelling: Literal["new", "old"] = "new",
    shards: int = 1,
    fused_experts: bool = False,
) -> Path:
    """The transformers-native format. `old` puts no `model.` in front and spells rope as before transformers 5.

    Published files keep experts apart; `fused_experts` keeps them as transformers has them in memory.
    """
    tensors = hf_tensors(spec, seed)
    if not fused_experts:
        tensors = _experts_apart(tensors)
    if spelling == "old":
        tensors = {_old_name(name): tensor for name, tensor in tensors.items()}
    _write_common(folder, tensors, shards)
    _write_json(folder / "config.json", hf_config(spec, spelling))
    _write_json(folder / "preprocessor_config.json", _processor(spec))
    return folder


def write_original(folder: Path, spec: TinySpec, seed: int = 0, shards: int = 1) -> Path:
    """OpenGVLab's own format, with the numbers that `write_hf` writes for the same seed."""
    _write_common(folder, original_tensors(spec, seed), shards)
    _write_json(folder / "config.json", original_config(spec))
    return folder


def reference_model(folder_hf: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model of a folder that `write_hf` wrote: plain attention and experts, ready for inference."""
    from transformers import InternVLForConditionalGeneration

    with torch.inference_mode(False):  # Phi-3 changes its frequencies in place, in and out of inference mode
        model = InternVLForConditionalGeneration.from_pretrained(
            folder_hf, dtype=dtype, attn_implementation="eager", experts_implementation="eager", local_files_only=True
        )
    return model.eval()


def hf_tensors(spec: TinySpec, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of transformers' model under its own names, filled with noise that depends on seed and name."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(**hf_config(spec, "new")))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if spec.tied:
        del shapes["lm_head.weight"]
    return {name: _noise(name, shape, seed) for name, shape in shapes.items()}


def original_tensors(spec: TinySpec, seed: int = 0) -> dict[str, Tensor]:
    """The same numbers under OpenGVLab's names, with q, k and v of the tower stacked into one, experts apart."""
    theirs = _experts_apart(hf_tensors(spec, seed))
    if spec.decoder == "internlm2":
        theirs = _internlm2_tensors(theirs, spec)
    tensors: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        renamed = _original_name(name)
        if ".attn.q_proj." in renamed:
            parts = [theirs[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            tensors[renamed.replace("q_proj", "qkv")] = torch.cat(parts)
        elif ".attn.k_proj." not in renamed and ".attn.v_proj." not in renamed:
            tensors[renamed] = tensor
    return tensors


def hf_config(spec: TinySpec, spelling: Literal["new", "old"] = "new") -> dict[str, Any]:
    vision = {
        **_vision_common(spec),
        "model_type": "internvl_vision",
        "image_size": [spec.tile_size, spec.tile_size],
        "patch_size": [spec.patch, spec.patch],
        "attention_bias": spec.vision == "300m",
        "use_qk_norm": spec.vision == "6b",
        "use_mean_pooling": True,
        "layer_scale_init_value": 0.1,
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": IMAGE_ID,
        "image_seq_length": spec.tokens_per_tile,
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": spec.tied,
        "torch_dtype": "float32",
        "text_config": _text_config(spec, spelling, spec.hf_decoder),
        "vision_config": vision,
    }


def original_config(spec: TinySpec) -> dict[str, Any]:
    vision = {
        **_vision_common(spec),
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "image_size": spec.tile_size,
        "patch_size": spec.patch,
        "qkv_bias": spec.vision == "300m",
        "qk_normalization": spec.vision == "6b",
        "initializer_factor": 0.1,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": spec.tile_size,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": spec.max_tiles,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
        "torch_dtype": "float32",
        "llm_config": _text_config(spec, "old", spec.decoder),
        "vision_config": vision,
    }


def _vision_common(spec: TinySpec) -> dict[str, Any]:
    return {
        "hidden_size": spec.vision_hidden,
        "num_hidden_layers": spec.vision_layers,
        "num_attention_heads": spec.vision_heads,
        "intermediate_size": spec.vision_intermediate,
        "norm_type": "layer_norm" if spec.vision == "300m" else "rms_norm",
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "num_channels": 3,
    }


def _text_config(spec: TinySpec, spelling: Literal["new", "old"], decoder: Kind) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[decoder]],
        "model_type": decoder,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.intermediate,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_position,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied,
        "bos_token_id": SPECIAL_IDS["<|endoftext|>"],
        "eos_token_id": SPECIAL_IDS["<|im_end|>"],
        **_own_keys(spec, decoder),
    }
    if spec.head_dim is not None:
        config["head_dim"] = spec.head_dim
    scaling = _rope_scaling(spec)
    if spelling == "old":
        if scaling:
            kind = scaling.pop("rope_type")
            scaling["type"] = "su" if kind == "longrope" else kind
        return {**config, "rope_theta": spec.rope_theta, "rope_scaling": scaling}
    original = {"original_max_position_embeddings": spec.longrope_from} if spec.longrope_from else {}
    return {
        **config,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), **original, "rope_theta": spec.rope_theta},
    }


def _own_keys(spec: TinySpec, decoder: Kind) -> dict[str, Any]:
    """What the config of one family says and others do not."""
    no_window = {"use_sliding_window": False, "sliding_window": None}
    if decoder in ("qwen2", "qwen3"):
        return no_window
    if decoder == "llama":
        return {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    if decoder == "internlm2":
        return {"bias": False}
    if decoder == "internlm3":
        return {"bias": False, "qkv_bias": False}
    if decoder == "phi3":
        length = spec.longrope_from or spec.max_position
        # Its own padding token is beyond a vocabulary this small, and its window longer than any context.
        return {"original_max_position_embeddings": length, "pad_token_id": END_IDS[1], "sliding_window": 262144}
    return {
        **no_window,
        "num_experts": spec.experts,
        "num_experts_per_tok": spec.experts_per_token,
        "moe_intermediate_size": spec.expert_intermediate,
        "norm_topk_prob": spec.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _rope_scaling(spec: TinySpec) -> dict[str, Any] | None:
    """In the new spelling."""
    if spec.dynamic_rope:
        return {"rope_type": "dynamic", "factor": 2.0}
    if spec.longrope_from is None:
        return None
    pairs = range((spec.head_dim or spec.hidden // spec.heads) // 2)
    return {
        "rope_type": "longrope",
        "short_factor": [1 + 0.125 * pair for pair in pairs],
        "long_factor": [1.25 + 1.5 * pair for pair in pairs],
    }


def _processor(spec: TinySpec) -> dict[str, Any]:
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": spec.tile_size, "width": spec.tile_size},
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": spec.max_tiles,
        "resample": 3,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def _noise(name: str, shape: torch.Size, seed: int) -> Tensor:
    """Sizes at which activations stay around one and every tensor matters."""
    generator = torch.Generator().manual_seed(1000 * seed + zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * noise
    if "lambda_" in name:
        return 0.5 + 0.2 * noise
    if name.endswith("bias"):
        return 0.2 * noise
    if len(shape) >= 2 and "embed_tokens" not in name and "embeddings.cls" not in name and "position" not in name:
        return noise / math.sqrt(shape[-1] if ".experts." in name else math.prod(shape[1:]))
    return 0.5 * noise


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


_EXPERTS = ".mlp.experts."


def _experts_apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fused experts, one after the other along the first axis and gate above up, as matrices of their own."""
    apart: dict[str, Tensor] = {}
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


def _internlm2_tensors(tensors: dict[str, Tensor], spec: TinySpec) -> dict[str, Tensor]:
    """Llama's tensors as InternLM2 has them: in wqkv, query heads, then the key head they share, then its value."""
    found: dict[str, Tensor] = {}
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


def _old_name(name: str) -> str:
    for new, old in _TO_OLD:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name.removeprefix("model.")


def _original_name(name: str) -> str:
    name = _old_name(name)
    if name.startswith("language_model."):
        return name
    for theirs, original in _TO_ORIGINAL:
        name = name.replace(theirs, original)
    return name


def _write_common(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(folder, tensors, shards)
    _write_json(
        folder / "generation_config.json", {"eos_token_id": list(END_IDS), "pad_token_id": SPECIAL_IDS["<|endoftext|>"]}
    )
    tokenizer().save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    )


def _write_shards(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, str] = {}
    names = sorted(tensors)
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(mine, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def tokenizer() -> Tokenizer:
    """Byte-level BPE of 256 bytes and a few merges, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *("".join(pair) for pair in _MERGES)]
    vocab = {token: number for number, token in enumerate(tokens)}
    found = Tokenizer(models.BPE(vocab=vocab, merges=list(_MERGES)))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return found


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
