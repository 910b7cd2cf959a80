"""Folders of models without weights: config, tokenizer, and nothing else. The engine draws the numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tilewise.capacity.files import described
from tilewise.capacity.model import planned_model
from tilewise.capacity.ranks import plan_rank
from tilewise.config import EngineConfig
from tilewise.layout import Layout
from tilewise.plan.floors import RankWork
from tilewise.platforms.base import Platform
from tilewise.twin.configs import generation_config, hf_config, original_config, processor_config
from tilewise.twin.specs import TWINS, TinySpec, full_size
from tilewise.twin.vocabularies import tokenizer, tokenizer_config
from tilewise.weights.family import MEMBERS

NAMES = {"1B": "InternVL3-1B", "8B": "InternVL3-8B", "30B-A3B": "InternVL3_5-30B-A3B"}


@dataclass(frozen=True)
class Model:
    """`size` of NAMES; `quantization` rounds weights as they are loaded, `scheme` is what config.json says."""

    size: str
    quantization: str | None = None
    scheme: str | None = None

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.size, self.quantization, self.scheme)))

    def write(self, folder: Path, tiny: bool) -> Path:
        """OpenGVLab's format, with the tokenizer of twins, as no text is read here."""
        spec = spec_of(self.size, tiny)
        config = original_config(spec, "bfloat16")
        return _written(folder, spec, {"config.json": described(config, self.scheme) if self.scheme else config})

    def work(self, folder: Path, platform: Platform) -> RankWork:
        """What it reads and computes."""
        config = EngineConfig.of(model=str(folder))
        planned = planned_model(config, self.quantization, platform, folder)
        return plan_rank(planned, Layout(), 0).work


def spec_of(size: str, tiny: bool) -> TinySpec:
    return TWINS[NAMES[size]] if tiny else full_size(MEMBERS[NAMES[size]])


def write_hf_folder(size: str, folder: Path, tiny: bool) -> Path:
    """For transformers."""
    spec = spec_of(size, tiny)
    files = {"config.json": hf_config(spec, "new", "bfloat16"), "preprocessor_config.json": processor_config(spec)}
    return _written(folder, spec, files)


def _written(folder: Path, spec: TinySpec, files: dict[str, dict[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files |= {
        "generation_config.json": generation_config(spec),
        "tokenizer_config.json": tokenizer_config(spec.vocabulary),
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    tokenizer(spec.vocabulary).save(str(folder / "tokenizer.json"))
    return folder
