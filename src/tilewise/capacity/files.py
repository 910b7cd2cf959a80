"""The small files of a model, which say how large it is: its own, or those that a published checkpoint has by its name.

For the latter no network is needed: knowledge of the family (`weights/family.py`) gives config.json in full size. How a
checkpoint is quantised is written into it as published checkpoints say it, and read by the code that reads those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import torch

from tilewise.config import EngineConfig
from tilewise.errors import DownloadFailed, InvalidConfig, UnknownModel, did_you_mean
from tilewise.quantize import FP8, GROUPS, W4A16, W8A8, W8A8_STATIC, W8A16, QuantizeOptions, Scheme
from tilewise.quantize.formats import CompressedTensors, Plan
from tilewise.quantize.rounding import Rounding
from tilewise.twin.configs import hf_config, original_config, processor_config
from tilewise.twin.specs import full_size
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.family import MEMBERS, RELATIVES, FamilyMember
from tilewise.weights.folder import CheckpointFolder, Section

AT_LOAD = ("int8", FP8)
"""Schemes that round a checkpoint in floats as it is loaded (`EngineConfig.quantization`)."""
_USUAL_GROUP = 128
AWQ, GPTQ = "awq", "gptq"
SCHEMES = (*AT_LOAD, W8A8, W8A8_STATIC, W8A16, W4A16, AWQ, GPTQ)
"""Schemes that `--quantization` may plan for."""
_ALSO: dict[str, str] = {"awq_marlin": AWQ, "gptq_marlin": GPTQ, "ascend": W8A8}
_ENDINGS = {
    r"awq": AWQ,
    r"gptq(-int4)?": GPTQ,
    r"w8a8(-(per-?token|quarot|mtp))?": W8A8,
    r"w8a8-static": W8A8_STATIC,
    r"w8a16": W8A16,
    r"w4a16": W4A16,
    r"fp8(-dynamic)?": "fp8-stored",
}
_ENDING = re.compile(r"(?P<base>.+?)[-_.](?P<how>" + "|".join(_ENDINGS) + ")", re.IGNORECASE)
_IN_FLOATS = ("re:.*vision", "re:.*mlp1", "re:.*multi_modal_projector", "re:.*lm_head", r"re:.*\.output$")


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """A checkpoint that is known by its name."""

    id: str
    member: FamilyMember
    transformers: bool = False
    scheme: str | None = None
    """Scheme of quantisation that the name says; None = it says none."""

    @property
    def said(self) -> str:
        how = "" if self.stored is None else f", quantised as its name says ({self.stored})"
        same = "" if self._name == self.member.name else f" for {self.member.name}"
        return f"as published{same}{how}; nothing is fetched"

    @property
    def stored(self) -> str | None:
        """The scheme as `--quantization` names it; None = the name says none."""
        return None if self.scheme is None else self.scheme.removesuffix("-stored")

    @property
    def _name(self) -> str:
        return self.id.rpartition("/")[2]

    def config(self) -> dict[str, Any]:
        spec = full_size(self.member)
        return hf_config(spec, "old", "bfloat16") if self.transformers else original_config(spec, "bfloat16")

    def write(self, folder: Path) -> CheckpointFolder:
        config = self.config()
        if self.scheme is not None:
            config = described(config, self.scheme)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if self.transformers:
            processor = processor_config(full_size(self.member))
            (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
        return CheckpointFolder.open(folder)


def published(model: str) -> PublishedCheckpoint | None:
    """Return the checkpoint of a hub id, or of a path that ends in one's name; None for a name that is not known."""
    owner, slash, name = model.rstrip("/").rpartition("/")
    scheme = None
    if (ending := _ENDING.fullmatch(name)) is not None and name not in MEMBERS:
        name, how = ending["base"], ending["how"].lower()
        scheme = next(scheme for pattern, scheme in _ENDINGS.items() if re.fullmatch(pattern, how))
    relative = RELATIVES.get(f"{owner}/{name}")
    if relative is not None:
        return PublishedCheckpoint(model, relative.like, relative.transformers, scheme)
    found = _BY_NAME.get(name.lower())
    return None if found is None else PublishedCheckpoint(model if slash else f"OpenGVLab/{model}", *found, scheme)


def _names_of(member: FamilyMember) -> Iterator[tuple[str, tuple[FamilyMember, bool]]]:
    yield member.name, (member, False)
    for suffix in member.suffixes:
        yield member.name + suffix, (member, False)
        if member.generation == "3.5":
            yield f"{member.name}{suffix}-HF", (member, True)
    if member.hf_name is not None:
        yield member.hf_name, (member, True)


_BY_NAME = {name.lower(): about for member in MEMBERS.values() for name, about in _names_of(member)}
"""Names of checkpoints in lower case, each with its member and whether its files are transformers'."""


def near_names(model: str) -> str:
    """Return a sentence that offers the member that was meant, or an empty text."""
    return did_you_mean(model.rpartition("/")[2], (*MEMBERS, *(name.partition("/")[2] for name in RELATIVES)))


def scheme_named(name: str) -> str:
    """Return a scheme by the name that engines have for it. Raises InvalidConfig for one that only files tell of."""
    found = _ALSO.get(name, name)
    if found not in SCHEMES:
        raise InvalidConfig(
            f"--quantization {name}: what can be planned for is {', '.join(SCHEMES)}.{did_you_mean(name, SCHEMES)} "
            "Any other is read from the files: name the folder or the .gguf of the checkpoint, and leave this out."
        )
    return found


def described(config: dict[str, Any], scheme: str) -> dict[str, Any]:
    """Return config.json of a checkpoint whose language model is quantised by a scheme that is stored.

    The head, the tower and the projector stay in floats.
    """
    if scheme == AWQ:
        about = {"quant_method": "awq", "bits": 4, "group_size": _USUAL_GROUP, "version": "gemm", "zero_point": True}
        return {**config, "quantization_config": about}
    if scheme == GPTQ:
        about = {"quant_method": "gptq", "bits": 4, "group_size": _USUAL_GROUP, "desc_act": False, "sym": True}
        return {**config, "quantization_config": about}
    options = QuantizeOptions(model="", out="", scheme=cast(Scheme, scheme.removesuffix("-stored")))
    rounding = Rounding.of(options, _group(config) if scheme == W4A16 else None, torch.bfloat16)
    written = CompressedTensors(Plan(options, rounding, (), (), _IN_FLOATS)).config(Section(config, "config.json"))
    if rounding.floats:  # rows stay floats in any case, which is not to be logged of files that nobody has
        written["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
    return written


def _group(config: dict[str, Any]) -> int | None:
    """Return how many inputs share a scale: the most that divide those of every layer, as in `tilewise quantize`."""
    text = config["llm_config"] if "llm_config" in config else config["text_config"]
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    width = heads * text.get("head_dim", hidden // heads)
    inner = text.get("moe_intermediate_size", text["intermediate_size"])
    fits = (group for group in GROUPS if all(count % group == 0 for count in (hidden, width, inner)))
    return max((group for group in fits if group <= _USUAL_GROUP), default=None)


def as_quantised(source: CheckpointFolder, scheme: str, folder: Path) -> CheckpointFolder:
    """Write and open the files that a checkpoint in floats has once quantised. Raises InvalidConfig if it cannot be."""
    if source.quantization is not None:
        raise InvalidConfig(
            f"--quantization {scheme}: {source.path} is quantised by {source.quantization} already: leave it out."
        )
    if source.text.get("model_type") == "gpt_oss":
        raise InvalidConfig(
            f"--quantization {scheme}: GPT-OSS keeps all experts of a layer in one tensor, for which {scheme} has no "
            "names: use int8 or fp8, which round them as they are loaded, or name a folder in MXFP4."
        )
    (folder / "config.json").write_text(json.dumps(described(source.config.values, scheme)), encoding="utf-8")
    processor = source.path / "preprocessor_config.json"
    if processor.exists():
        (folder / processor.name).write_bytes(processor.read_bytes())
    return CheckpointFolder.open(folder)


@dataclass(frozen=True, slots=True)
class Files:
    """The small files of a model, and where they come from."""

    folder: CheckpointFolder
    model: str
    """Name of the model as a server takes it: a folder or an id."""
    said: str
    """Origin of the files, in words."""
    scheme: str | None = None
    """Scheme by which the checkpoint has to be quantised first; None = it is used as it is."""
    to_be: bool = False
    """True if the files were made for this plan."""
    stored: str | None = None
    """The scheme that the name of a published checkpoint says."""


def find_model(config: EngineConfig, quantization: str | None, work: Path) -> Files:
    """Return the small files of a model, or those that a published one of this name has; nothing is fetched for these.

    `quantization` is as on the command line; `work` is a folder for files that are made. Raises UnknownModel and
    InvalidConfig.
    """
    name = config.model
    local = name == "demo" or Path(name).expanduser().exists() or ".gguf" in name.lower()
    known = None if local else published(name)
    if known is not None:
        files = Files(known.write(_new(work)), known.id, known.said, to_be=True, stored=known.stored)
    else:
        files = Files(_found(config, name), name, "the checkpoint's own files")
    if quantization is None or files.folder.quantization is not None or quantization in AT_LOAD:
        return files
    scheme = scheme_named(quantization)
    return Files(as_quantised(files.folder, scheme, _new(work)), files.model, files.said, scheme, to_be=True)


def _found(config: EngineConfig, name: str) -> CheckpointFolder:
    try:
        return Checkpoint.find(name, config.revision, config, config.mmproj).folder
    except (UnknownModel, DownloadFailed) as error:
        raise type(error)(f"{error}{near_names(name)}") from None


def _new(work: Path) -> Path:
    return Path(mkdtemp(dir=work))
