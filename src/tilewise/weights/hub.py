"""A model's name to a folder: the demo, a local folder, or a download that fetches only what is needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tilewise.errors import InvalidConfig, UnknownModel
from tilewise.weights.gguf.choice import find_choice
from tilewise.weights.gguf.folder import gguf_folder, is_gguf_folder

DEMO = "demo"
# Neither part begins or ends with a dot or dash, and no two of them are together: what both hubs allow.
_PART = r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"(?!.*(--|\.\.)){_PART}/{_PART}", re.ASCII)


def find_model(
    model: str,
    revision: str | None = None,
    hub: str | None = None,
    cache: str | None = None,
    token: str | None = None,
    *,
    weights: bool = True,
    mmproj: str | None = None,
) -> Path:
    """The folder of a model; a local path wins over a hub id. Without `weights`, config and tokenizer suffice.

    `token` is shown to the hub, in place of the one that the environment has; `mmproj` names the vision tower of a
    model in GGUF files.

    Raises UnknownModel for what is neither a folder nor known to the hub, DownloadFailed if its files cannot be had,
    InvalidCheckpoint if the repository is no checkpoint.
    """
    folder = Path(__file__).parent.parent / "demo" / "checkpoint" if model == DEMO else Path(model).expanduser()
    choice = find_choice(model, mmproj) if model and not is_gguf_folder(folder) else None
    if choice is not None:
        return gguf_folder(choice)
    if mmproj is not None:
        raise InvalidConfig(f"mmproj={mmproj!r} belongs to a model in GGUF files, {model} is none: leave it out.")
    if model and folder.is_dir():
        return folder
    if not _ID.fullmatch(model):
        raise UnknownModel(f"{model}: no such folder, and not a hub id of the form owner/name.")
    # Imported here: folders need no network code.
    from tilewise.weights.hubs.download import download
    from tilewise.weights.hubs.huggingface import HuggingFace
    from tilewise.weights.hubs.modelscope import ModelScope

    kind = ModelScope if hub == "modelscope" or (hub is None and uses_modelscope()) else HuggingFace
    return download(kind.of(model, revision, cache, token), weights)


def uses_modelscope() -> bool:
    return os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("true", "1")
