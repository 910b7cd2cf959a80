"""A model's checkpoint, by the model's name: the demo, a local folder, or a download of only what is needed.

Its small files are here, its weights are fetched when they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tilewise.config import EngineConfig
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig, UnknownModel
from tilewise.weights.adapter import Adapter, NeededAdapterFiles
from tilewise.weights.file_names import NeededFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.gguf import find_choice, gguf_folder, is_gguf_folder

DEMO = "demo"
# Neither part begins or ends with a dot or dash, and no two of them are together: what both hubs allow.
_PART = r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"(?!.*(--|\.\.)){_PART}/{_PART}", re.ASCII)
_GGUF_ID = re.compile(rf"(?P<id>{_ID.pattern})(:(?P<tag>{_PART})|/(?P<file>{_PART})\.gguf)", re.ASCII)
"""Name of one of a repository's GGUF files, given by a part of its name (`owner/name:Q4_K_M`) or the whole."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose small files are here, and whose weights can be fetched.

    What is wrong with a model, or does not fit, shows in its small files, before gigabytes are fetched.
    """

    folder: CheckpointFolder
    fetch_weights: Callable[..., Path]
    """Function that brings the weights into the folder; with `language=False`, only files that hold some of vision."""
    tokenizer: Path
    """The folder of the tokenizer, which is the model's own unless another is asked for."""

    @classmethod
    def of(cls, config: EngineConfig) -> Checkpoint:
        """Return the model of a configuration, with its tokenizer. The errors are those of `find_model`."""
        found = cls.find(config.model, config.revision, config, config.mmproj)
        if config.adapter is not None:
            found = replace(found, folder=replace(found.folder, adapter=find_adapter(config.adapter, config)))
        if config.tokenizer is None and config.tokenizer_revision is None:
            return found
        name, revision = config.tokenizer or config.model, config.tokenizer_revision
        if config.tokenizer in (None, config.model):
            revision = revision or config.revision
        folder = find_model(name, revision, config.hub, config.download_dir, config.hf_token, weights=False)
        return replace(found, tokenizer=folder)

    @classmethod
    def find(cls, model: str, revision: str | None, config: EngineConfig, mmproj: str | None = None) -> Checkpoint:
        """Return another model from where the configuration has models. The errors are those of `find_model`."""
        find = partial(find_model, model, revision, config.hub, config.download_dir, config.hf_token, mmproj=mmproj)
        folder = find(weights=False)
        return cls(CheckpointFolder.open(folder), find, folder)


def find_model(
    model: str,
    revision: str | None = None,
    hub: str | None = None,
    cache: str | None = None,
    token: str | None = None,
    *,
    weights: bool = True,
    mmproj: str | None = None,
    language: bool = True,
) -> Path:
    """Return the folder of a model, fetched if need be; a local path wins over a hub id.

    Without `weights`, config and tokenizer suffice; without `language`, so do the files that hold some of vision's
    weights. `token` is shown to the hub, in place of the one that the environment has; `mmproj` names the vision tower
    of a model in GGUF files.

    Raises UnknownModel for what is neither a folder nor known to the hub, DownloadFailed if its files cannot be had,
    InvalidCheckpoint if the repository is no checkpoint.
    """
    folder = Path(__file__).parent.parent / "demo" / "checkpoint" if model == DEMO else Path(model).expanduser()
    if (named := _GGUF_ID.fullmatch(model)) and not folder.parent.is_dir():
        tag = named["tag"] or named["file"]
        fetched = _fetched(named["id"], revision, hub, cache, token, NeededFiles(weights, tag=tag))
        return find_model(f"{fetched}:{tag}", mmproj=mmproj)
    choice = find_choice(model, mmproj) if model and not is_gguf_folder(folder) else None
    if choice is not None:
        return gguf_folder(choice)
    if mmproj is not None:
        raise InvalidConfig(f"mmproj={mmproj!r} belongs to a model in GGUF files, {model} is none: leave it out.")
    if model and folder.is_dir():
        return folder
    if not _ID.fullmatch(model):
        raise UnknownModel(f"{model}: no such folder, and not a hub id of the form owner/name.")
    return _fetched(model, revision, hub, cache, token, NeededFiles(weights, language))


def find_adapter(name: str, config: EngineConfig) -> Adapter:
    """Return a low-rank adapter by the name of its folder, or by an id on the hub, from where it is fetched.

    Raises UnknownModel, DownloadFailed and InvalidCheckpoint as `find_model` does.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not _ID.fullmatch(name):
            raise UnknownModel(f"adapter={name}: no such folder, and not a hub id of the form owner/name.")
        folder = _fetched(name, None, config.hub, config.download_dir, config.hf_token, NeededAdapterFiles())
    return Adapter.open(folder)


def _fetched(
    model: str, revision: str | None, hub: str | None, cache: str | None, token: str | None, needed: NeededFiles
) -> Path:
    # Imported here: folders need no network code.
    from tilewise.weights.hubs import download
    from tilewise.weights.hubs.repository import HuggingFace, ModelScope

    usual = "modelscope" if Environment.here().use_modelscope else "huggingface"
    kind = ModelScope if (hub or usual) == "modelscope" else HuggingFace
    return download(kind.of(model, revision, cache, token), needed)
