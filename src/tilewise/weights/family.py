"""Every published InternVL chat checkpoint from InternVL2 on, and checkpoints of other names that compute the same.

Sources: the introductions of each generation at https://internvl.readthedocs.io, and the config.json of each language
model. Quantised repositories (-AWQ) are left out; suffixes that change the weights alone are `FamilyMember.suffixes`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Generation = Literal["2", "2.5", "3", "3.5"]
GENERATIONS: tuple[Generation, ...] = ("2", "2.5", "3", "3.5")
Vision = Literal["300m", "6b"]
Backbone = Literal["qwen2", "qwen3", "qwen3_moe", "llama", "internlm2", "internlm3", "phi3", "gpt_oss"]
"""A language model, as `model_type` of its config spells it."""
RopeKind = Literal["default", "dynamic", "longrope", "yarn"]
TokenizerKind = Literal["qwen2", "qwen2.5", "qwen3", "internlm2", "internlm3", "phi3", "llama3", "yi", "gpt_oss"]
Template = Literal["Hermes-2", "internlm2-chat", "phi3-chat", "internvl2_5", "internvl3_5_gpt_oss"]


@dataclass(frozen=True, slots=True)
class PublishedTower:
    """An InternViT: tiles of 448 pixels, patches of 14."""

    name: str
    hidden: int
    layers: int
    heads: int
    inner: int


TOWERS: dict[Vision, PublishedTower] = {
    "300m": PublishedTower("InternViT-300M", 1024, 24, 16, 4096),  # layer norm; biases on queries, keys and values
    "6b": PublishedTower("InternViT-6B", 3200, 45, 25, 12800),  # RMS norm; norms of whole queries and keys
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Base of the rotary embedding, and how it is stretched to longer contexts."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_length: int | None = None
    """Length before stretching, in tokens; of longrope and yarn."""


@dataclass(frozen=True, slots=True)
class Series:
    """Facts that language models of all sizes in a series share."""

    name: str
    backbone: Backbone
    tokenizer: TokenizerKind
    vocab: int
    """Rows of the embedding; some tables are longer than the tokenizer."""
    rope: Rope
    max_length: int = 32768
    eps: float = 1e-6
    window: int | None = None
    """Tokens that a query of every other layer sees; None = all before it."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in every layer."""

    count: int
    per_token: int


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A decoder's dimensions, as its own config.json has them."""

    name: str
    series: Series
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Width inside the MLP, or inside one expert."""
    experts: Experts | None = None


_DYNAMIC = Rope(1e6, "dynamic", 2.0)
_QWEN2 = Series("Qwen2", "qwen2", "qwen2", 151655, Rope(1e6))
_QWEN2_5 = Series("Qwen2.5", "qwen2", "qwen2.5", 151674, Rope(1e6))
_QWEN3 = Series("Qwen3", "qwen3", "qwen3", 151936, Rope(1e6), 40960)
_QWEN3_MOE = replace(_QWEN3, name="Qwen3-MoE", backbone="qwen3_moe")
_INTERNLM2 = Series("InternLM2", "internlm2", "internlm2", 92553, _DYNAMIC, eps=1e-5)
# Rope of the base model; the checkpoint's own may differ, which only contexts beyond 32768 tokens would show.
_INTERNLM2_5_LARGE = replace(_INTERNLM2, name="InternLM2.5", rope=Rope(5e7, "dynamic", 2.5))
_INTERNLM3 = Series("InternLM3", "internlm3", "internlm3", 128512, Rope(5e7, "dynamic", 6.0), eps=1e-5)
_PHI3 = Series("Phi-3", "phi3", "phi3", 32020, Rope(1e4, "longrope", original_length=4096), 131072, 1e-5)
_YI = Series("Yi", "llama", "yi", 64000, Rope(5e6), 4096, 1e-5)  # without the few rows of added tokens
_LLAMA3 = Series("Llama 3", "llama", "llama3", 128265, Rope(5e5), 8192, 1e-5)
_GPT_OSS = Series("GPT-OSS", "gpt_oss", "gpt_oss", 201088, Rope(150000, "yarn", 32.0, 4096), 131072, 1e-5, window=128)

LANGUAGE_MODELS = {
    model.name: model
    for model in (
        LanguageModel("Qwen2-0.5B", _QWEN2, 896, 24, 14, 2, 64, 4864),
        LanguageModel("Qwen2.5-0.5B", _QWEN2_5, 896, 24, 14, 2, 64, 4864),
        LanguageModel("Qwen2.5-1.5B", _QWEN2_5, 1536, 28, 12, 2, 128, 8960),
        LanguageModel("Qwen2.5-3B", _QWEN2_5, 2048, 36, 16, 2, 128, 11008),
        LanguageModel("Qwen2.5-7B", _QWEN2_5, 3584, 28, 28, 4, 128, 18944),
        LanguageModel("Qwen2.5-14B", _QWEN2_5, 5120, 48, 40, 8, 128, 13824),
        LanguageModel("Qwen2.5-32B", _QWEN2_5, 5120, 64, 40, 8, 128, 27648),
        LanguageModel("Qwen2.5-72B", _QWEN2_5, 8192, 80, 64, 8, 128, 29568),
        LanguageModel("Qwen3-0.6B", _QWEN3, 1024, 28, 16, 8, 128, 3072),
        LanguageModel("Qwen3-1.7B", _QWEN3, 2048, 28, 16, 8, 128, 6144),
        LanguageModel("Qwen3-4B", _QWEN3, 2560, 36, 32, 8, 128, 9728),
        LanguageModel("Qwen3-8B", _QWEN3, 4096, 36, 32, 8, 128, 12288),
        LanguageModel("Qwen3-14B", _QWEN3, 5120, 40, 40, 8, 128, 17408),
        LanguageModel("Qwen3-32B", _QWEN3, 5120, 64, 64, 8, 128, 25600),
        LanguageModel("Qwen3-30B-A3B", _QWEN3_MOE, 2048, 48, 32, 4, 128, 768, Experts(128, 8)),
        LanguageModel("Qwen3-235B-A22B", _QWEN3_MOE, 4096, 94, 64, 4, 128, 1536, Experts(128, 8)),
        LanguageModel("InternLM2-1.8B", _INTERNLM2, 2048, 24, 16, 8, 128, 8192),
        LanguageModel("InternLM2-20B", _INTERNLM2, 6144, 48, 48, 8, 128, 16384),
        LanguageModel("InternLM2.5-1.8B", _INTERNLM2, 2048, 24, 16, 8, 128, 8192),
        LanguageModel("InternLM2.5-7B", _INTERNLM2, 4096, 32, 32, 8, 128, 14336),
        LanguageModel("InternLM2.5-20B", _INTERNLM2_5_LARGE, 6144, 48, 48, 8, 128, 16384),
        LanguageModel("InternLM3-8B", _INTERNLM3, 4096, 48, 32, 2, 128, 10240),
        LanguageModel("Phi-3-mini-128k", _PHI3, 3072, 32, 32, 32, 96, 8192),
        LanguageModel("Yi-34B", _YI, 7168, 60, 56, 8, 128, 20480),
        LanguageModel("Llama-3-70B", _LLAMA3, 8192, 80, 64, 8, 128, 28672),
        LanguageModel("gpt-oss-20b", _GPT_OSS, 2880, 24, 64, 8, 64, 2880, Experts(32, 4)),
    )
}


@dataclass(frozen=True, slots=True)
class FamilyMember:
    """One checkpoint, by its name below OpenGVLab/."""

    name: str
    generation: Generation
    vision: Vision
    language: LanguageModel
    template: Template
    flash: bool = False
    """True if it has the router and the second projector of InternVL3.5-Flash."""

    @property
    def hf_name(self) -> str | None:
        """Name of the same weights in transformers' own format; None = not published in it."""
        if self.flash or self.generation == "2":
            return None
        return self.name + {"2.5": "-MPO-hf", "3": "-hf", "3.5": "-HF"}[self.generation]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the name that stand for other weights of the same architecture."""
        if self.flash:
            return ()
        every: dict[Generation, tuple[str, ...]] = {
            "2": (),
            "2.5": ("-MPO",),
            "3": ("-Pretrained", "-Instruct"),
            "3.5": ("-Pretrained", "-Instruct", "-MPO"),
        }
        return every[self.generation]


def _member(
    generation: Generation, size: str, vision: Vision, language: str, template: Template = "internvl2_5"
) -> FamilyMember:
    model = LANGUAGE_MODELS[language]
    if generation == "3" and model.series.backbone == "qwen2":
        # Configs (seen: 1B, 8B, 78B) ask for dynamic rope, idle up to the trained length.
        model = replace(model, series=replace(model.series, rope=_DYNAMIC))
    return FamilyMember(f"InternVL{generation.replace('.', '_')}-{size}", generation, vision, model, template)


_INTERNVL2 = (
    _member("2", "1B", "300m", "Qwen2-0.5B", "Hermes-2"),
    _member("2", "2B", "300m", "InternLM2-1.8B", "internlm2-chat"),
    _member("2", "4B", "300m", "Phi-3-mini-128k", "phi3-chat"),
    _member("2", "8B", "300m", "InternLM2.5-7B", "internlm2-chat"),
    _member("2", "26B", "6b", "InternLM2-20B", "internlm2-chat"),
    _member("2", "40B", "6b", "Yi-34B", "Hermes-2"),
    _member("2", "Llama3-76B", "6b", "Llama-3-70B", "Hermes-2"),
)
_INTERNVL2_5 = (
    _member("2.5", "1B", "300m", "Qwen2.5-0.5B"),
    _member("2.5", "2B", "300m", "InternLM2.5-1.8B"),
    _member("2.5", "4B", "300m", "Qwen2.5-3B"),
    _member("2.5", "8B", "300m", "InternLM2.5-7B"),
    _member("2.5", "26B", "6b", "InternLM2.5-20B"),
    _member("2.5", "38B", "6b", "Qwen2.5-32B"),
    _member("2.5", "78B", "6b", "Qwen2.5-72B"),
)
_INTERNVL3 = (
    _member("3", "1B", "300m", "Qwen2.5-0.5B"),
    _member("3", "2B", "300m", "Qwen2.5-1.5B"),
    _member("3", "8B", "300m", "Qwen2.5-7B"),
    _member("3", "9B", "300m", "InternLM3-8B"),
    _member("3", "14B", "300m", "Qwen2.5-14B"),
    _member("3", "38B", "6b", "Qwen2.5-32B"),
    _member("3", "78B", "6b", "Qwen2.5-72B"),
)
_INTERNVL3_5 = (
    _member("3.5", "1B", "300m", "Qwen3-0.6B"),
    _member("3.5", "2B", "300m", "Qwen3-1.7B"),
    _member("3.5", "4B", "300m", "Qwen3-4B"),
    _member("3.5", "8B", "300m", "Qwen3-8B"),
    _member("3.5", "14B", "300m", "Qwen3-14B"),
    _member("3.5", "38B", "6b", "Qwen3-32B"),
    _member("3.5", "30B-A3B", "300m", "Qwen3-30B-A3B"),
    _member("3.5", "241B-A28B", "6b", "Qwen3-235B-A22B"),
)
_GPT_OSS_MEMBER = _member("3.5", "GPT-OSS-20B-A4B-Preview", "300m", "gpt-oss-20b", "internvl3_5_gpt_oss")
_FLASH = tuple(replace(member, name=f"{member.name}-Flash", flash=True) for member in _INTERNVL3_5)

MEMBERS: dict[str, FamilyMember] = {
    member.name: member for member in (*_INTERNVL2, *_INTERNVL2_5, *_INTERNVL3, *_INTERNVL3_5, _GPT_OSS_MEMBER, *_FLASH)
}


@dataclass(frozen=True, slots=True)
class RelatedCheckpoint:
    """A checkpoint of another name that computes what a family member does, by its id on the hub.

    Sources: the repositories of each (OpenGVLab/InternVL, OpenSenseNova/SenseNova-SI, SkyworkAI/Skywork-R1V,
    InternLM/Intern-S1), transformers' `qianfan_ocr`, vLLM's registry.
    """

    id: str
    like: FamilyMember
    """The family member of the same tower and language model."""
    architecture: str
    model_type: str
    transformers: bool = False
    """True if its config is spelled as transformers does."""
    renamed: bool = False
    """True if its tensors are named as transformers does."""
    template: Template | None = None
    """The conversation template that its config names; None = it names none."""

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]

    @property
    def format(self) -> str:
        config, tensors = ("hf" if told else "original" for told in (self.transformers, self.renamed))
        return tensors if config == tensors else f"{tensors}, config as {config}"


_INTERN_S1 = ("InternS1ForConditionalGeneration", "interns1", True, True)
_QIANFAN_OCR = ("QianfanOCRForConditionalGeneration", "qianfan_ocr", True)
_SKYWORK = ("SkyworkR1VChatModel", "skywork_chat")


def _chat(id: str, like: str, template: Template) -> RelatedCheckpoint:
    return RelatedCheckpoint(id, MEMBERS[like], "InternVLChatModel", "internvl_chat", template=template)


RELATIVES: dict[str, RelatedCheckpoint] = {
    relative.id: relative
    for relative in (
        _chat("OpenGVLab/InternVL-Chat-V1-5", "InternVL2-26B", "internlm2-chat"),
        _chat("OpenGVLab/Mini-InternVL-Chat-2B-V1-5", "InternVL2-2B", "internlm2-chat"),
        _chat("OpenGVLab/Mini-InternVL-Chat-4B-V1-5", "InternVL2-4B", "phi3-chat"),
        _chat("sensenova/SenseNova-SI-1.1-InternVL3-2B", "InternVL3-2B", "internvl2_5"),
        _chat("sensenova/SenseNova-SI-1.2-InternVL3-8B", "InternVL3-8B", "internvl2_5"),
        RelatedCheckpoint("Skywork/Skywork-R1V-38B", MEMBERS["InternVL2_5-38B"], *_SKYWORK),
        RelatedCheckpoint("Skywork/Skywork-R1V3-38B", MEMBERS["InternVL3-38B"], *_SKYWORK),
        RelatedCheckpoint("internlm/Intern-S1", MEMBERS["InternVL3_5-241B-A28B"], *_INTERN_S1),
        RelatedCheckpoint("internlm/Intern-S1-mini", MEMBERS["InternVL3_5-8B"], *_INTERN_S1),
        RelatedCheckpoint("baidu/Qianfan-OCR", MEMBERS["InternVL3_5-4B"], *_QIANFAN_OCR),
    )
}
