"""Architectures by the names that config.json has for them: what is InternVL's computation, and what looks like it.

Relatives of other projects are InternVL's tower, projector and language models under a name of their own (sources:
transformers' `qianfan_ocr` and its `conversion_mapping.py`; vLLM's `qianfan_ocr.py`, `interns1.py`, `skyworkr1v.py`).
Others share a name or a part with the family and compute something else: they are refused before anything is fetched,
each with what comes nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tilewise.errors import InvalidCheckpoint, did_you_mean
from tilewise.weights.folder import INTERN_S1, NATIVE, ORIGINAL, QIANFAN_OCR, SKYWORK_R1V, CheckpointFolder

FORMATS: dict[str, str] = {
    ORIGINAL: "original",
    NATIVE: "hf",
    QIANFAN_OCR: "original",  # though its config is spelled as transformers does
    INTERN_S1: "hf",
    SKYWORK_R1V: "original",
}


@dataclass(frozen=True, slots=True)
class OtherModel:
    """A model that may be taken for one of the family, and is none."""

    name: str
    why: str
    """Reason why it is not supported, in words that follow its name."""
    nearest: str


_S1 = "internlm/Intern-S1, or Intern-S1-mini"
_MONO = OtherModel("Mono-InternVL", "has visual experts in its language model and no vision tower", "InternVL2_5-2B")
_INTERNVL_U = OtherModel(
    "InternVL-U",
    "draws pictures, for which its language model has embeddings and a decoder of their own",
    "InternVL3_5-2B, which its understanding half resembles",
)
_SENSENOVA_U1 = OtherModel(
    "SenseNova-U1", "has no vision encoder (NEO-unify)", "sensenova/SenseNova-SI-1.2-InternVL3-8B"
)
_BY_ARCHITECTURE: dict[str, OtherModel] = {
    "InternS1ProForConditionalGeneration": OtherModel(
        "Intern-S1-Pro", "has the tower of Qwen3-VL, routes in groups of experts, and reads time series", _S1
    ),
    "InternS2PreviewForConditionalGeneration": OtherModel("Intern-S2-Preview", "is built as Qwen3.5 is", _S1),
    "InternS2MobiusForConditionalGeneration": OtherModel("Intern-S2-Mobius", "is built as Qwen3.5 is", _S1),
    "InternVLUChatModel": _INTERNVL_U,
    "InternVLUModel": _INTERNVL_U,
    "NEOChatModel": _SENSENOVA_U1,
    "H2OVLChatModel": OtherModel(
        "H2OVL-Mississippi", "has a language model of Mistral's kind, and cuts pictures at two scales", "InternVL2_5-2B"
    ),
    "NVLM_D": OtherModel("NVLM-D", "tags each tile in the prompt", "InternVL2_5-78B"),
}
_BY_LANGUAGE_MODEL = {"InternLM2VEForCausalLM": _MONO}
_BY_CODE = {
    "hico": OtherModel(
        "InternVideo2.5 or InternVL2.5-HiCo",
        "merges the tokens of every four frames into 64 (HiCo)",
        "OpenGVLab/InternVL2_5-8B, from which it grew and which takes videos",
    )
}
"""Models whose architecture is InternVL's own, by a part of the name of their code in `auto_map`."""


def format_name(folder: CheckpointFolder) -> str:
    """Return how the tensors of a checkpoint are named and packed.

    Raises InvalidCheckpoint for an architecture that is not known, and for a model that is not the family's although
    its config looks so: the message then says what it is, and what comes nearest.
    """
    config, name = folder.config, folder.architecture
    other = _other_model(folder)
    if other is not None:
        raise InvalidCheckpoint(
            f"{config.where}: this is {other.name} ({name}), which {other.why}; that is not supported. "
            f"Nearest to it is {other.nearest}."
        )
    if name not in FORMATS:
        raise InvalidCheckpoint(
            f"{config.where}: the architecture is {name!r}, supported are {', '.join(FORMATS)}."
            f"{did_you_mean(name, FORMATS)}"
        )
    return FORMATS[name]


def _other_model(folder: CheckpointFolder) -> OtherModel | None:
    config = folder.config
    language: Any = config.get("llm_config", {})
    named = language.get("architectures") if isinstance(language, dict) else None
    first = named[0] if isinstance(named, list) and named else None
    code = config.get("auto_map", {})
    files = " ".join(map(str, code.values())).lower() if isinstance(code, dict) else ""
    by_code = (other for part, other in _BY_CODE.items() if part in files)
    by_language = _BY_LANGUAGE_MODEL.get(first) if isinstance(first, str) else None
    return _BY_ARCHITECTURE.get(folder.architecture) or by_language or next(by_code, None)
