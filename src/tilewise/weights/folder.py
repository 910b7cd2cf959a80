"""A checkpoint folder: its JSON files, and the architecture that config.json names. Standard library only, for layers
above the runner.

Relatives of other projects are InternVL's tower, projector and language models under a name of their own (sources:
transformers' `qianfan_ocr` and its `conversion_mapping.py`; vLLM's `qianfan_ocr.py`, `interns1.py`, `skyworkr1v.py`).
Others share a name or a part with the family and compute something else: they are refused before anything is fetched,
each with what comes nearest.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tilewise.errors import GET_AGAIN, InvalidCheckpoint, UnknownModel, did_you_mean
from tilewise.option import MANY

if TYPE_CHECKING:
    from tilewise.weights.adapter import Adapter

ADAPTER_CONFIG = "adapter_config.json"
ORIGINAL = "InternVLChatModel"
NATIVE = "InternVLForConditionalGeneration"
QIANFAN_OCR = "QianfanOCRForConditionalGeneration"
INTERN_S1 = "InternS1ForConditionalGeneration"
SKYWORK_R1V = "SkyworkR1VChatModel"


@dataclass(frozen=True)
class Section:
    """One JSON object of a config file, which names file and key when something in it is wrong."""

    values: dict[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default when it is absent or null: transformers writes None as null."""
        value = self.values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """Return a number, which has to be there unless there is a default. Raises InvalidCheckpoint."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise InvalidCheckpoint(f"{self.where}: {key} must be a number, found {value!r:.80}.")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number above zero, of 31 bits; a list of equal ones, as of height and width, counts as one.

        Raises InvalidCheckpoint.
        """
        value = self.get(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MANY:
            raise InvalidCheckpoint(
                f"{self.where}: {key} must be a whole number above 0, found {value!r:.80}; the limit is {MANY}."
            )
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """Return a list of names, which may be absent. Raises InvalidCheckpoint."""
        value = self.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidCheckpoint(f"{self.where}: {key} must be a list of names, found {value!r:.80}.")
        return tuple(value)

    def first(self, key: str) -> str | None:
        """Return the first of a list of names, or None when there is none. Raises InvalidCheckpoint."""
        return next(iter(self.names(key)), None)

    def section(self, key: str) -> Self:
        value = self.get(key)
        if not isinstance(value, dict):
            raise InvalidCheckpoint(f"{self.where}: {key} must be an object, found {value!r}.")
        return replace(self, values=value, where=f"{self.where}: {key}")


@dataclass(frozen=True)
class CheckpointFolder:
    """The files of one checkpoint. `config` is parsed, nothing else is opened until asked for."""

    path: Path
    config: Section
    adapter: Adapter | None = None
    """Low-rank adapter that is merged into the weights as they are read."""

    @classmethod
    def open(cls, path: Path) -> CheckpointFolder:
        if not path.is_dir():
            raise UnknownModel(f"{path} is not a folder.")
        if (path / ADAPTER_CONFIG).exists() and not (path / "config.json").exists():
            base = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path") or "MODEL"
            raise InvalidCheckpoint(
                f"{path} is an adapter and no model: name the model, and this as --adapter (adapter in Python), as in "
                f"tilewise serve {base} --adapter {path}"
            )
        return cls(path, Section(read_json(path / "config.json"), str(path / "config.json")))

    @property
    def architecture(self) -> str:
        """The first entry of `architectures`, which picks the checkpoint format."""
        return str(self.config.first("architectures"))

    @property
    def text(self) -> Section:
        """The language model's own config."""
        return self.config.section("llm_config" if "llm_config" in self.config.values else "text_config")

    @property
    def vision(self) -> Section:
        return self.config.section("vision_config")

    @property
    def quantization(self) -> str | None:
        """Method by which the files say that the weights are quantised; None = in floats.

        It is a `quant_method` such as awq or gptq, or "ascend" for the description that ModelSlim writes.
        """
        if self.quantization_config is not None:
            return str(self.quantization_config.get("quant_method", "ascend"))
        if any(self.path.glob("quant_model_description*.json")):
            return "ascend"
        return "gptq" if (self.path / "quantize_config.json").exists() else None

    @property
    def quantization_config(self) -> Section | None:
        """Description of a quantised checkpoint in config.json, at its top or with the language model; None = none."""
        for section in (self.config.values, self.config.get("llm_config"), self.config.get("text_config")):
            found = section.get("quantization_config") if isinstance(section, dict) else None
            if isinstance(found, dict):
                return Section(found, f"{self.config.where}: quantization_config")
        return None

    def optional(self, name: str) -> Section:
        """Read a JSON file that may be missing: then the section is empty."""
        return Section(optional_json(self.path / name), str(self.path / name))


def optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path.parent} has no {path.name}: it is not a checkpoint folder.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InvalidCheckpoint(f"{path} cannot be read ({error}); {GET_AGAIN}.") from None
    if not isinstance(values, dict):
        raise InvalidCheckpoint(f"{path} must hold a JSON object, found {type(values).__name__}.")
    return values


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


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
