"""Low-rank adapters in the form of PEFT: what adapter_config.json says of one. Standard library only.

An adapter is merged into its model as that is loaded (`merged_files.py`), so that it costs nothing afterwards. Besides
adapters in a folder of their own there are checkpoints that OpenGVLab's training code saved while layers were wrapped
(`use_llm_lora`, `use_backbone_lora` in config.json), and which hold both.

Source of the names, and of what they mean: huggingface/peft `src/peft/tuners/lora/config.py` and `layer.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.file_names import NeededFiles
from tilewise.weights.folder import ADAPTER_CONFIG, Section, read_json

WEIGHTS = "adapter_model.safetensors"
LOW_RANK = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.(?!weight$)\w+)?(\.weight)?"
)
"""A tensor of an adapter, by its name without wrappers; behind the part may stand the adapter's own name."""
_REPETITION, _REPEATED_GROUP, _MOST_REPETITIONS = re.compile(r"[*+{]"), re.compile(r"\)[*+{]"), 4
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Beginnings of ways to begin training that also change the weights of the base, which the adapter does not hold."""
_REFUSED = {
    "alora_invocation_tokens": "it counts only behind some tokens of a prompt",
    "fan_in_fan_out": "its base keeps matrices as [in, out]",
    "layer_replication": "its base has layers that the model lacks",
    "lora_bias": "it has biases of its own",
    "target_parameters": "it adapts parameters that are no layers",
    "trainable_token_indices": "it has single rows of the embedding",
    "use_qalora": "it adapts groups of quantised weights",
}
"""Settings that mean another sum than `merged_files.py` computes, each with why."""


@dataclass(frozen=True)
class Adapter:
    """A folder with adapter_config.json: how much of each product of two small matrices is added to a weight."""

    folder: Path
    alpha: float
    alphas: Mapping[str, float]
    """Values in place of `alpha` by patterns of modules' names, which are matched against the ends of names."""
    by_root: bool
    """True if the product is divided by the root of its rank (rsLoRA), and not by the rank."""

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read adapter_config.json of a folder. Raises InvalidCheckpoint for one that means something else."""
        found = Section(read_json(folder / ADAPTER_CONFIG), str(folder / ADAPTER_CONFIG))
        _check(found)
        alphas = {pattern: _alpha(found, alpha) for pattern, alpha in (found.get("alpha_pattern") or {}).items()}
        adapter = cls(folder, found.number("lora_alpha"), alphas, bool(found.get("use_rslora", False)))
        if not (folder / WEIGHTS).is_file():
            raise InvalidCheckpoint(
                f"{folder} has no {WEIGHTS}: pickled weights (*.bin) are not read; load the adapter in PEFT once, and "
                "save it again with save_pretrained."
            )
        return adapter

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of a module's product of matrices."""
        matches = (alpha for pattern, alpha in self.alphas.items() if re.match(rf"(.*\.)?({pattern})$", module))
        return next(matches, self.alpha) / (math.sqrt(rank) if self.by_root else rank)


class NeededAdapterFiles(NeededFiles):
    """The files that are needed of a repository with an adapter."""

    def check(self, model: str, names: Collection[str]) -> None:
        if absent := next((name for name in (ADAPTER_CONFIG, WEIGHTS) if name not in names), None):
            raise InvalidCheckpoint(f"{model} has no {absent}: it is no low-rank adapter that PEFT saved.")

    def weight_files(self, model: str, names: Collection[str], folder: Path) -> list[str]:
        return [WEIGHTS]

    def lacking(self, folder: Path) -> str | None:
        return next((name for name in (ADAPTER_CONFIG, WEIGHTS) if not (folder / name).is_file()), None)


def _check(config: Section) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InvalidCheckpoint(f"{config.where}: peft_type is {kind!r:.80}, expected 'LORA'; others cannot be merged.")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise InvalidCheckpoint(
            f"{config.where}: init_lora_weights is {start!r:.80}, whose training also changed the base: convert the "
            "adapter with PEFT (save_pretrained with path_initial_model_for_weight_conversion)."
        )
    for name, why in _REFUSED.items():
        if config.get(name):
            raise InvalidCheckpoint(
                f"{config.where}: {name} is {config.get(name)!r:.80}, and cannot be merged here ({why}): merge it in "
                "PEFT (merge_and_unload), and serve what that saves."
            )
    patterns = config.get("alpha_pattern", {})
    if not isinstance(patterns, dict):
        raise InvalidCheckpoint(f"{config.where}: alpha_pattern must be an object, found {patterns!r:.80}.")
    for pattern in patterns:
        where = f"{config.where}: alpha_pattern has {pattern!r:.80}"
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidCheckpoint(f"{where}, which is no pattern: {error}.") from None
        # Whoever published it could else have names compared until the end of time.
        if len(_REPETITION.findall(pattern)) > _MOST_REPETITIONS or _REPEATED_GROUP.search(pattern):
            raise InvalidCheckpoint(
                f"{where}, which repeats a group or more than {_MOST_REPETITIONS} times something: merge it in PEFT."
            )


def _alpha(config: Section, value: Any) -> float:
    found: float = Section({"alpha_pattern": value}, config.where).number("alpha_pattern")
    return found


def is_wrapped(names: Collection[str]) -> bool:
    """True for the names of a checkpoint that was saved with its adapters unmerged."""
    return any(".lora_A." in name for name in names)


def config_when_merged(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json whose checkpoint has no adapters left in it, for readers that would wrap layers again."""
    return {name: 0 if name in ("use_llm_lora", "use_backbone_lora") else value for name, value in config.items()}


def plain_names(names: frozenset[str]) -> frozenset[str]:
    """Return the names that a checkpoint's tensors have once adapters are merged."""
    if not is_wrapped(names):
        return names
    return frozenset(without_wrappers(name) for name in names if not LOW_RANK.fullmatch(name))


def without_wrappers(name: str) -> str:
    """Return a name as it is where PEFT wraps nothing."""
    return name.replace("base_model.model.", "", 1).replace(".base_layer.", ".")


def adapted_name(name: str) -> str:
    """Return the name of the weight that a tensor of an adapter changes; of any other tensor, its own."""
    plain = without_wrappers(name)
    part = LOW_RANK.fullmatch(plain)
    return plain if part is None else f"{part['module']}.weight"
