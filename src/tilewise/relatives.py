"""Checkpoints of other names, most of other organisations, that compute what a member of the family does.

Sources: the repositories of each (OpenGVLab/InternVL, OpenSenseNova/SenseNova-SI, SkyworkAI/Skywork-R1V,
InternLM/Intern-S1), transformers' `qianfan_ocr`, vLLM's registry.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewise.family import MEMBERS, Member, Template


@dataclass(frozen=True, slots=True)
class Relative:
    """One checkpoint, by its id on the hub."""

    id: str
    like: Member
    """The member of the same tower and language model."""
    architecture: str
    model_type: str
    transformers: bool = False
    """Its config is spelled as transformers does ..."""
    renamed: bool = False
    """... and its tensors are named so."""
    template: Template | None = None
    """As its config names it; None = not at all."""

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]

    @property
    def format(self) -> str:
        config, tensors = ("hf" if told else "original" for told in (self.transformers, self.renamed))
        return tensors if config == tensors else f"{tensors}, config as {config}"


_CHAT = ("InternVLChatModel", "internvl_chat")
_INTERN_S1 = ("InternS1ForConditionalGeneration", "interns1", True, True)
_SKYWORK = ("SkyworkR1VChatModel", "skywork_chat")

RELATIVES: dict[str, Relative] = {
    relative.id: relative
    for relative in (
        Relative("OpenGVLab/InternVL-Chat-V1-5", MEMBERS["InternVL2-26B"], *_CHAT, template="internlm2-chat"),
        Relative("OpenGVLab/Mini-InternVL-Chat-2B-V1-5", MEMBERS["InternVL2-2B"], *_CHAT, template="internlm2-chat"),
        Relative("OpenGVLab/Mini-InternVL-Chat-4B-V1-5", MEMBERS["InternVL2-4B"], *_CHAT, template="phi3-chat"),
        Relative("sensenova/SenseNova-SI-1.1-InternVL3-2B", MEMBERS["InternVL3-2B"], *_CHAT, template="internvl2_5"),
        Relative("sensenova/SenseNova-SI-1.2-InternVL3-8B", MEMBERS["InternVL3-8B"], *_CHAT, template="internvl2_5"),
        Relative("Skywork/Skywork-R1V-38B", MEMBERS["InternVL2_5-38B"], *_SKYWORK),
        Relative("Skywork/Skywork-R1V3-38B", MEMBERS["InternVL3-38B"], *_SKYWORK),
        Relative("internlm/Intern-S1", MEMBERS["InternVL3_5-241B-A28B"], *_INTERN_S1),
        Relative("internlm/Intern-S1-mini", MEMBERS["InternVL3_5-8B"], *_INTERN_S1),
        Relative(
            "baidu/Qianfan-OCR",
            MEMBERS["InternVL3_5-4B"],
            *("QianfanOCRForConditionalGeneration", "qianfan_ocr"),
            transformers=True,
        ),
    )
}
