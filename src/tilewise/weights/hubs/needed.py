"""Which files of a repository a model needs: its JSON, its tokenizer and its safetensors; never code or other formats.

Only files at the root count: subfolders hold copies for other programs (`original/`, `onnx/`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.shards import index_among, listed_shards, shards_among

CONFIG = "config.json"
_SINGLE = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")


def small_files(names: Collection[str]) -> list[str]:
    """Config, tokenizer and template."""
    return [name for name in names if _is_small(name) and not name.startswith("consolidated")]


def weight_files(model: str, names: Collection[str], folder: Path) -> list[str]:
    """The shards that the index in `folder` lists, or the single file, or whatever safetensors there are.

    Raises InvalidCheckpoint if the repository does not hold all that the index lists.
    """
    index = index_among(names)
    if index is not None:
        listed = listed_shards(folder / index)
        absent = [name for name in listed if name not in names]
        if absent:
            raise InvalidCheckpoint(
                f"{model}: {index} lists the shard {absent[0]}, which the repository does not hold "
                f"({len(absent)} of {len(listed)} are missing). Try another --revision, or tell its owner."
            )
        return listed
    shards = shards_among(names)
    return [_SINGLE] if _SINGLE in shards else shards


def check_repository(model: str, names: Collection[str], weights: bool) -> None:
    """Refuse, before anything is fetched, a repository that cannot be a checkpoint."""
    if CONFIG not in names:
        raise InvalidCheckpoint(f"{model} has no {CONFIG}: it is not a checkpoint. It holds {_kinds(names)}.")
    if weights and not shards_among(names):
        raise InvalidCheckpoint(
            f"{model} has no *.safetensors weights, only {_kinds(names)}. Tilewise reads no other form: look for a "
            "repository that has them, or convert it with transformers' save_pretrained."
        )


def lacking(folder: Path, weights: bool) -> str | None:
    """The name of a needed file that a folder lacks, if there is one, judged by the folder alone.

    The config is fetched after the other small files, so where it is, they are; but another tool may have put it there.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    if CONFIG not in names:
        return CONFIG
    if not any(name in names for name in _TOKENIZERS):
        return _TOKENIZERS[0]
    if not weights:
        return None
    index = index_among(names)
    if index is not None:
        return next((name for name in listed_shards(folder / index) if name not in names), None)
    return None if shards_among(names) else _SINGLE


def _is_small(name: str) -> bool:
    if name.endswith(".index.json"):  # that of pytorch_model.bin, or of other formats
        return name.endswith(".safetensors.index.json")
    return name.endswith((".json", ".model", ".jinja")) or name == "merges.txt"


def _kinds(names: Collection[str]) -> str:
    """What a repository holds, as in `2 *.bin, 1 *.md`."""
    kinds = Counter(f"*{PurePosixPath(name).suffix}" if PurePosixPath(name).suffix else name for name in names)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8)) or "nothing"
