"""A model's name to a folder: the demo, a local folder, or a download that fetches only what is needed."""

from __future__ import annotations

import os
from pathlib import Path

from tilewise.errors import UnknownModel

DEMO = "demo"
# Config, tokenizer and weights; never code.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "*.tiktoken"]


def find_model(model: str, revision: str | None = None, hub: str | None = None, cache: str | None = None) -> Path:
    """The folder of a model; a local path wins over a hub id. Raises UnknownModel, saying what was tried."""
    if model == DEMO:
        return Path(__file__).parent.parent / "demo" / "checkpoint"
    if model and Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UnknownModel(f"{model}: no such folder, and not a hub id of the form owner/name.")
    if hub == "modelscope" or (hub is None and uses_modelscope()):
        return _from_modelscope(model, revision, cache)
    return _from_hugging_face(model, revision, cache)


def uses_modelscope() -> bool:
    return os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("true", "1")


def _from_hugging_face(model: str, revision: str | None, cache: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=cache, allow_patterns=_WANTED))
    except HFValidationError as error:
        raise UnknownModel(f"{model}: no such folder, and not a hub id ({error})") from None
    except RepositoryNotFoundError:
        raise UnknownModel(
            f"{model}: the hub knows no such model, or it needs a login (set HF_TOKEN). Check the spelling."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UnknownModel(
            f"{model} cannot be downloaded ({type(error).__name__}: {error}). Give a local folder, set HF_ENDPOINT to "
            "a mirror, or use --hub modelscope."
        ) from None


def _from_modelscope(model: str, revision: str | None, cache: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise UnknownModel(f"{model}: ModelScope needs its package: pip install 'tilewise[modelscope]'.") from None
    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=cache, allow_patterns=_WANTED))
    except Exception as error:  # its errors share no base class
        raise UnknownModel(f"{model} cannot be downloaded from ModelScope ({error}).") from error
