"""The model that a checkpoint's config.json describes, in one form for both checkpoint formats."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from tilewise.errors import InvalidCheckpoint
from tilewise.layers import NormKind, RopeConfig, RopeKind
from tilewise.parallel.mesh import Mesh
from tilewise.step import FlashRule
from tilewise.weights.folder import CheckpointFolder, Section

ROUTER_HEADS = 16
"""Heads of the attention with which a Flash model's router reads a tile; no config.json says their number."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """An InternViT. Both sizes call themselves `intern_vit_6b`, so only the numbers count."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    norm: NormKind
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool

    def multiplications(self, tile_size: int) -> int:
        """Return how many numbers the layers' matrices multiply for one tile; attention's are a small part of it."""
        tokens = (tile_size // self.patch_size) ** 2 + 1
        return self.num_layers * tokens * self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """A mixture of experts in place of the MLP."""

    count: int
    per_token: int
    intermediate_size: int
    renormalise: bool = True
    """True if weights of the chosen experts are made to add up to one."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder as data. What differs between backbones only in numbers and switches is a field here."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope: RopeConfig
    qkv_bias: bool = False
    output_bias: bool = False
    head_norm: bool = False
    """RMS norm of every query and key head before rope (Qwen3)."""
    experts: ExpertConfig | None = None
    window: int | None = None
    """Tokens that a query of a sliding layer sees; which layers slide is the backbone's to say."""


def shared_out(config: DecoderConfig, mesh: Mesh) -> DecoderConfig:
    """Return the decoder that a rank computes. Raises InvalidConfig where it cannot be shared out like that."""
    queries, keys = mesh.heads(config.num_heads, config.num_kv_heads)
    inner, experts = config.intermediate_size, config.experts
    if experts is None:
        inner = mesh.share(inner, "inputs of down_proj").length
    elif mesh.experts(experts.count) is None:
        own = mesh.share(experts.intermediate_size, "inputs of an expert's down_proj").length
        experts = replace(experts, intermediate_size=own)
    return replace(
        config,
        num_layers=len(mesh.layers(config.num_layers)),
        num_heads=queries.length,
        num_kv_heads=keys.length,
        intermediate_size=inner,
        experts=experts,
    )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    vision: VisionConfig
    decoder: DecoderConfig
    tile_size: int
    shuffle_block: int
    """Side of the square of patches that becomes one token."""
    shuffle_version: Literal["v1", "v2"]
    flash: FlashRule | None = None

    @property
    def rows_per_page(self) -> int:
        """Rows that are kept of a tile: all of its tokens and, behind them, the few of a Flash model."""
        return self.tokens_per_tile + (self.flash.tokens if self.flash else 0)

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile_size // self.vision.patch_size // self.shuffle_block) ** 2


def text_config(text: Section, head_dim: int | None = None, **switches: Any) -> DecoderConfig:
    """Read the fields that all Llama-shaped decoders spell alike; `switches` are the backbone's own.

    `head_dim` is the family's default; None = hidden size / heads.
    """
    hidden, heads = text.whole("hidden_size"), text.whole("num_attention_heads")
    kv_heads = text.whole("num_key_value_heads", heads)
    if text.get("hidden_act", "silu") != "silu":
        raise InvalidCheckpoint(f"{text.where}: hidden_act is {text.get('hidden_act')!r}, expected 'silu'.")
    if heads % kv_heads:
        raise InvalidCheckpoint(
            f"{text.where}: num_attention_heads={heads} must be a multiple of num_key_value_heads={kv_heads}."
        )
    head_dim = text.whole("head_dim", head_dim or hidden // heads)
    if head_dim % 2:
        raise InvalidCheckpoint(f"{text.where}: head_dim={head_dim} must be even, rope turns pairs.")
    return DecoderConfig(
        vocab_size=text.whole("vocab_size"),
        hidden_size=hidden,
        num_layers=text.whole("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=text.whole("intermediate_size"),
        norm_eps=text.number("rms_norm_eps"),
        rope=rope_config(text, head_dim),
        **switches,
    )


def _rope_kind(text: Section, scaling: Section) -> RopeKind:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    if kind not in get_args(RopeKind):
        raise InvalidCheckpoint(
            f"{text.where}: rope type is {kind!r}, supported are {', '.join(map(repr, get_args(RopeKind)))}."
        )
    return cast(RopeKind, kind)


def rope_config(text: Section, width: int) -> RopeConfig:
    """Read rope, in the old spelling `rope_theta` + `rope_scaling` or the new one `rope_parameters`; `su` is longrope's
    first name.
    """
    key = next((key for key in ("rope_parameters", "rope_scaling") if text.get(key)), None)
    scaling = text.section(key) if key else Section({}, text.where)
    kind = _rope_kind(text, scaling)
    for section, key in itertools.product((scaling, text), ("partial_rotary_factor", "mscale", "mscale_all_dim")):
        if section.get(key, 1.0) != 1.0:
            raise InvalidCheckpoint(f"{section.where}: {key} is {section.get(key)!r}, only 1.0 is supported.")
    trained = text.whole("max_position_embeddings")
    original = scaling.get("original_max_position_embeddings", text.get("original_max_position_embeddings", trained))
    longrope, given = kind == "longrope", scaling.get("attention_factor")
    if longrope and original == 1:
        raise InvalidCheckpoint(f"{scaling.where}: original_max_position_embeddings must be above 1.")
    return RopeConfig(
        theta=float(scaling.number("rope_theta", text.number("rope_theta", 10000.0))),
        trained_length=trained,
        kind=kind,
        factor=_positive(scaling, "factor", 1.0),
        original_length=Section({"length": original}, scaling.where).whole("length"),
        short_factor=_divisors(scaling, "short_factor", width) if longrope else (),
        long_factor=_divisors(scaling, "long_factor", width) if longrope else (),
        beta_fast=_positive(scaling, "beta_fast", 32.0),
        beta_slow=_positive(scaling, "beta_slow", 1.0),
        truncate=bool(scaling.get("truncate", True)),
        attention_factor=None if given is None else _positive(scaling, "attention_factor", 1.0),
    )


def _positive(section: Section, key: str, default: float) -> float:
    value = float(section.number(key, default))
    if value <= 0:
        raise InvalidCheckpoint(f"{section.where}: {key} must be above 0, found {value:g}.")
    return value


def _divisors(scaling: Section, key: str, width: int) -> tuple[float, ...]:
    """Read divisors of frequencies, one for each pair that rope turns."""
    values = scaling.get(key)
    if not isinstance(values, list) or len(values) != width // 2:
        raise InvalidCheckpoint(f"{scaling.where}: {key} must be a list of {width // 2} numbers, found {values!r:.80}.")
    return tuple(_positive(Section({key: value}, scaling.where), key, 0.0) for value in values)


def vision_config(vision: Section) -> VisionConfig:
    """Read the tower, in OpenGVLab's spelling or in transformers' (`attention_bias`, `use_qk_norm`)."""
    norm = vision.get("norm_type", "layer_norm")
    if norm not in ("layer_norm", "rms_norm"):
        raise InvalidCheckpoint(f"{vision.where}: norm_type is {norm!r}, expected 'layer_norm' or 'rms_norm'.")
    if vision.get("hidden_act", "gelu") != "gelu":
        raise InvalidCheckpoint(f"{vision.where}: hidden_act is {vision.get('hidden_act')!r}, expected 'gelu'.")
    hidden, heads = vision.whole("hidden_size"), vision.whole("num_attention_heads")
    if hidden % heads:
        raise InvalidCheckpoint(
            f"{vision.where}: hidden_size={hidden} must be a multiple of num_attention_heads={heads}."
        )
    return VisionConfig(
        hidden_size=hidden,
        num_layers=vision.whole("num_hidden_layers"),
        num_heads=heads,
        intermediate_size=vision.whole("intermediate_size"),
        image_size=vision.whole("image_size"),
        patch_size=vision.whole("patch_size"),
        norm=cast(NormKind, norm),
        norm_eps=vision.number("layer_norm_eps", 1e-6),
        qkv_bias=bool(vision.get("qkv_bias", vision.get("attention_bias", False))),
        qk_norm=bool(vision.get("qk_normalization", vision.get("use_qk_norm", False))),
    )


def model_config(
    folder: CheckpointFolder,
    vision: VisionConfig,
    decoder: DecoderConfig,
    tile_size: int,
    shuffle_version: str,
) -> ModelConfig:
    """Put the parts together and check that they fit."""
    config = folder.config
    ratio = config.number("downsample_ratio", 0.5)
    block = round(1 / ratio) if 0 < ratio <= 1 else 0
    if abs(block * ratio - 1) > 1e-6:
        raise InvalidCheckpoint(f"{config.where}: downsample_ratio must be 1, 1/2, 1/3, 1/4 ..., found {ratio}.")
    side = tile_size // vision.patch_size
    if tile_size % vision.patch_size or side % block:
        raise InvalidCheckpoint(
            f"{config.where}: a tile of {tile_size} pixels in patches of {vision.patch_size} "
            f"does not divide into blocks of {block}x{block} (downsample_ratio={ratio})."
        )
    if shuffle_version not in ("v1", "v2"):
        raise InvalidCheckpoint(f"{config.where}: ps_version is {shuffle_version!r}, expected 'v1' or 'v2'.")
    return ModelConfig(vision, decoder, tile_size, block, cast(Literal["v1", "v2"], shuffle_version))


def flash_rule(config: Section, model: ModelConfig) -> FlashRule:
    """Read the rule of a config with `flash_mode`; raise InvalidCheckpoint where it makes no sense.

    Easy tiles are shuffled twice as coarsely, and two thresholds say which are easy.
    """
    side, block = model.tile_size // model.vision.patch_size, 2 * model.shuffle_block
    if side % block or model.vision.hidden_size % ROUTER_HEADS:
        raise InvalidCheckpoint(
            f"{config.where}: flash_mode needs tiles that divide into blocks of {block}x{block} patches, found "
            f"{side}x{side}, and a tower whose width {model.vision.hidden_size} divides by {ROUTER_HEADS}."
        )
    relative, absolute = (_threshold(config, f"flash_{kind}_threshold") for kind in ("relative", "absolute"))
    return FlashRule((side // block) ** 2, relative, absolute)


def _threshold(config: Section, key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InvalidCheckpoint(
            f"{config.where}: with flash_mode {key} must be a number from 0 to 1, found {value!r:.80}: take it from "
            "the config.json that the checkpoint was published with, or run without its router (--no-flash-router)."
        )
    return float(value)
