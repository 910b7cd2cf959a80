"""A checkpoint folder: JSON files and the index of shards. Standard library only, for layers above the runner."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
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
        """Return a value, or the default when it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> Any:
        """Return a number, which has to be there unless there is a default. Raises InvalidCheckpoint."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise InvalidCheckpoint(f"{self.where}: {key} must be a number, found {value!r:.80}.")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number above zero; a list of equal numbers, as of height and width, counts as one.

        Raises InvalidCheckpoint.
        """
        value = self.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidCheckpoint(f"{self.where}: {key} must be a whole number above 0, found {value!r}.")
        return value

    def first(self, key: str) -> str | None:
        """Return the first of a list of names, or None when there is none. Raises InvalidCheckpoint."""
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
        """Method by which the files say that the weights are quantised; None = in floats.

        It is a `quant_method` such as awq or gptq, or "ascend" for the description that ModelSlim writes.
        """
        for section in (self.config.values, self.config.get("llm_config"), self.config.get("text_config")):
            found = section.get("quantization_config") if isinstance(section, dict) else None
            if isinstance(found, dict):
                return str(found.get("quant_method", "ascend"))
        if any(self.path.glob("quant_model_description*.json")):
            return "ascend"
        return "gptq" if (self.path / "quantize_config.json").exists() else None

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


INDEX = "model.safetensors.index.json"
_SHARD, _INDEX = ".safetensors", ".safetensors.index.json"
_PART = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_MOST_PARTS = 10_000
_LANGUAGE = re.compile(r"(model\.)?language_model\.|lm_head\.")
"""Beginnings of the names of the language model's tensors, in both formats."""
_DESCRIPTION, _DESCRIBED = "quant_model_description", "quant_model_weight"
"""Beginnings of the names of ModelSlim's files: of its description, and of the weights that are described."""


def weight_names(names: Collection[str]) -> list[str]:
    """Return the shards and indexes among the files of a checkpoint, sorted.

    `consolidated*` is the same weights once more, in another program's names. ModelSlim's files may lie in a copy of
    the model that was quantised: where a description is, only the weights that it describes count.
    """
    found = [n for n in sorted(names) if n.endswith((_SHARD, _INDEX)) and not n.startswith("consolidated")]
    if any(name.startswith(_DESCRIPTION) and name.endswith(".json") for name in names):
        return [name for name in found if name.startswith(_DESCRIBED)] or found
    return found


def index_among(names: Collection[str]) -> str | None:
    """Return the index of a checkpoint's shards among its files, if it has one."""
    found = weight_names(names)
    if INDEX in found:
        return INDEX
    return next((name for name in found if name.startswith(_DESCRIBED) and name.endswith(_INDEX)), None)


def shards_among(names: Collection[str]) -> list[str]:
    """Return the shards among the files of a checkpoint that has no index."""
    return [name for name in weight_names(names) if name.endswith(_SHARD)]


def missing_parts(names: Sequence[str]) -> list[str]:
    """Return shards that are not among these, though the numbers in a name (`-00001-of-00002`) ask for them."""
    wanted: set[str] = set()
    for found in filter(None, map(_PART.fullmatch, names)):
        count = int(found["count"])
        numbers = range(1, count + 1) if count < _MOST_PARTS else ()
        wanted |= {f"{found['name']}-{number:05d}-of-{found['count']}{_SHARD}" for number in numbers}
    return sorted(wanted - set(names))


def listed_shards(index: Path, language: bool = True) -> list[str]:
    """Return the sorted names of the shards; without `language`, of those that have more than the language model.

    Raises InvalidCheckpoint for a file that is no index, or one with a name that is no plain file name.
    """
    places = tensor_places(index)
    for name in set(places.values()):
        if not isinstance(name, str) or Path(name).name != name:
            raise InvalidCheckpoint(f"{index}: the shard {name!r} lies outside {index.parent}.")
    return sorted({shard for tensor, shard in places.items() if language or not _LANGUAGE.match(tensor)})


def tensor_places(index: Path) -> dict[str, str]:
    """Return the shard of each tensor by name. Raises InvalidCheckpoint for a file that is no index."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        hash(frozenset(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidCheckpoint(f"{index} is not a weight index ({error!r}); {GET_AGAIN}.") from None
    return dict(places)
