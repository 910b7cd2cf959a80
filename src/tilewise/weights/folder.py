"""A checkpoint folder and its JSON files. Standard library only, so that the layers above the runner may read it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewise.errors import GET_AGAIN, InvalidCheckpoint, UnknownModel

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
        """A value, or the default when it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """A number that has to be there unless there is a default."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise InvalidCheckpoint(f"{self.where}: {key} must be a number, found {value!r:.80}.")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above zero. Configs that give height and width alike count as one number."""
        value = self.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidCheckpoint(f"{self.where}: {key} must be a whole number above 0, found {value!r}.")
        return value

    def first(self, key: str) -> str | None:
        """The first of a list of names, or None when there is none."""
        value = self.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidCheckpoint(f"{self.where}: {key} must be a list of names, found {value!r:.80}.")
        return value[0] if value else None

    def section(self, key: str) -> Section:
        value = self.get(key)
        if not isinstance(value, dict):
            raise InvalidCheckpoint(f"{self.where}: {key} must be an object, found {value!r}.")
        return Section(value, f"{self.where}: {key}")


@dataclass(frozen=True)
class CheckpointFolder:
    """The files of one checkpoint. `config` is parsed, nothing else is opened until asked for."""

    path: Path
    config: Section

    @classmethod
    def open(cls, path: Path) -> CheckpointFolder:
        if not path.is_dir():
            raise UnknownModel(f"{path} is not a folder.")
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
        """How the files say that the weights are quantised: a `quant_method` such as awq or gptq, "ascend" for the
        description that ModelSlim writes, or None for floats."""
        for section in (self.config.values, self.config.get("llm_config"), self.config.get("text_config")):
            found = section.get("quantization_config") if isinstance(section, dict) else None
            if isinstance(found, dict):
                return str(found.get("quant_method", "ascend"))
        if any(self.path.glob("quant_model_description*.json")):
            return "ascend"
        return "gptq" if (self.path / "quantize_config.json").exists() else None

    def optional(self, name: str) -> Section:
        """A JSON file that may be missing: then an empty section."""
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
