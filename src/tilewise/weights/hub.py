"""The folder of a model, by its name: the demo, a local folder, or a download that fetches only what is needed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tilewise.errors import InvalidConfig, UnknownModel
from tilewise.weights.gguf.choice import find_choice
from tilewise.weights.gguf.folder import gguf_folder, is_gguf_folder

if TYPE_CHECKING:
    from tilewise.weights.hubs.huggingface import HuggingFace
    from tilewise.weights.hubs.modelscope import ModelScope

DEMO = "demo"
# Neither part begins or ends with a dot or dash, and no two of them are together: what both hubs allow.
_PART = r"[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"(?!.*(--|\.\.)){_PART}/{_PART}", re.ASCII)
_GGUF_ID = re.compile(rf"(?P<id>{_ID.pattern})(:(?P<tag>{_PART})|/(?P<file>{_PART})\.gguf)", re.ASCII)
"""Name of one of a repository's GGUF files, given by a part of its name (`owner/name:Q4_K_M`) or the whole."""


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
        from tilewise.weights.hubs.download import download

        tag = named["tag"] or named["file"]
        fetched = download(_repository(named["id"], revision, hub, cache, token), weights, tag)
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
    # Imported here: folders need no network code.
    from tilewise.weights.hubs.download import download

    return download(_repository(model, revision, hub, cache, token), weights, language=language)


def _repository(
    model: str, revision: str | None, hub: str | None, cache: str | None, token: str | None
) -> HuggingFace | ModelScope:
    from tilewise.weights.hubs.huggingface import HuggingFace
    from tilewise.weights.hubs.modelscope import ModelScope

    kind = ModelScope if hub == "modelscope" or (hub is None and uses_modelscope()) else HuggingFace
    return kind.of(model, revision, cache, token)


def uses_modelscope() -> bool:
    return os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("true", "1")
