"""TinySpec: one tiny model. Each member of the family has its twin: the same switches, tiny numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tilewise.twin.vocabularies import VOCABULARIES, TwinVocabulary
from tilewise.weights.family import (
    MEMBERS,
    TOWERS,
    Backbone,
    Experts,
    FamilyMember,
    Rope,
    Template,
    TokenizerKind,
    Vision,
)


@dataclass(frozen=True)
class TinySpec:
    """A tiny model: two layers in tower and decoder, widths that are no powers of two unless a format demands it."""

    decoder: Backbone = "qwen2"
    """Decoder. internlm2 and internlm3 are so called in the original format only: the -hf format makes them llama."""
    vision: Vision = "300m"
    """300m: layer norm, biases on q, k, v. 6b: RMS norm, norms of whole queries and keys, no such biases."""
    tokenizer: TokenizerKind = "qwen2.5"
    template: Template = "internvl2_5"
    tied: bool = False
    """Tied checkpoints store no lm_head."""
    head_dim: int | None = None
    """None = hidden / heads, and then config.json does not say it."""
    heads: int = 6
    kv_heads: int = 2
    layers: int = 2
    hidden: int = 36
    intermediate: int = 52
    vocab: int | None = None
    """Rows of the embedding; None = as many as there are tokens."""
    max_position: int = 2048
    eps: float = 1e-6
    rope: Rope = Rope(1e6)
    experts: int = 6
    experts_per_token: int = 2
    expert_intermediate: int = 22
    """Width of one expert, in models with experts, whose `intermediate` says nothing."""
    renormalise: bool = True
    expert_storage: Literal["floats", "mxfp4"] = "floats"
    """Experts of gpt_oss in the original format: as floats, or as MXFP4, blocks of 32 codes of four bits."""
    window: int = 8
    """Tokens that a query sees in every other layer of gpt_oss."""
    flash: bool = False
    """True for the router and second projector of InternVL3.5-Flash, in the original format only."""
    tile_size: int = 56
    patch: int = 14
    vision_layers: int = 2
    vision_hidden: int = 24
    vision_heads: int = 3
    vision_intermediate: int = 44
    max_tiles: int = 12

    @property
    def vocabulary(self) -> TwinVocabulary:
        return VOCABULARIES[self.tokenizer]

    @property
    def vocab_size(self) -> int:
        return self.vocab or self.vocabulary.size

    @property
    def image_id(self) -> int:
        return self.vocabulary.image_id

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile_size // self.patch // 2) ** 2

    @property
    def hf_decoder(self) -> Backbone:
        return "llama" if self.decoder in ("internlm2", "internlm3") else self.decoder


def tiny(member: FamilyMember) -> TinySpec:
    """Return the twin of a published checkpoint."""
    language, vocabulary = member.language, VOCABULARIES[member.language.series.tokenizer]
    series = language.series
    spec = TinySpec(
        decoder=series.backbone,
        vision=member.vision,
        tokenizer=series.tokenizer,
        template=member.template,
        kv_heads=6 if language.kv_heads == language.heads else 2,
        eps=series.eps,
        rope=_tiny_rope(series.rope),
        flash=member.flash,
    )
    if series.tokenizer in ("qwen3", "internlm3", "gpt_oss"):  # whose embeddings are longer than the tokenizer
        spec = replace(spec, vocab=vocabulary.size + 9)
    if series.backbone in ("qwen3", "qwen3_moe"):  # which always say it
        own = language.head_dim * language.heads != language.hidden
        spec = replace(spec, head_dim=10 if own else spec.hidden // spec.heads)
    if member.vision == "6b":  # an odd number of heads there too
        spec = replace(spec, vision_hidden=40, vision_heads=5)
    if series.backbone == "gpt_oss":  # blocks of 32 have to fit in
        spec = replace(spec, heads=4, head_dim=24, hidden=64, experts=4, expert_intermediate=32, max_position=4096)
    # The router's attention has 16 heads.
    return replace(spec, vision_hidden=48, vision_heads=3) if member.flash else spec


def full_size(member: FamilyMember) -> TinySpec:
    """Return a checkpoint's spec with the published numbers, not tiny at all, for configs and shapes."""
    tower, language = TOWERS[member.vision], member.language
    series, experts = language.series, language.experts or Experts(6, 2)
    return replace(
        tiny(member),
        hidden=language.hidden,
        layers=language.layers,
        heads=language.heads,
        kv_heads=language.kv_heads,
        head_dim=None if series.backbone in ("qwen2", "llama", "phi3") else language.head_dim,
        intermediate=3 * language.hidden if language.experts else language.inner,
        expert_intermediate=language.inner,
        experts=experts.count,
        experts_per_token=experts.per_token,
        vocab=series.vocab,
        rope=series.rope,
        max_position=series.max_length,
        window=series.window or 8,
        tile_size=448,
        vision_layers=tower.layers,
        vision_hidden=tower.hidden,
        vision_heads=tower.heads,
        vision_intermediate=tower.inner,
    )


def _tiny_rope(rope: Rope) -> Rope:
    """Return the rope, stretched from so short a length that tiny contexts lie within and beyond it."""
    lengths = {"longrope": 256, "yarn": 128}
    return replace(rope, original_length=lengths[rope.kind]) if rope.kind in lengths else rope


TWINS: dict[str, TinySpec] = {name: tiny(member) for name, member in MEMBERS.items()}
"""Name of a member -> its twin. GPT-OSS has another, NAME-MXFP4, since its experts may be stored in either form."""
TWINS |= {
    f"{name}-MXFP4": replace(spec, expert_storage="mxfp4") for name, spec in TWINS.items() if spec.decoder == "gpt_oss"
}


def stand_ins() -> dict[str, str]:
    """Return, for the name of each twin, the first twin that computes the same: only the template may differ."""
    first: dict[TinySpec, str] = {}
    return {name: first.setdefault(replace(spec, template="internvl2_5"), name) for name, spec in TWINS.items()}
