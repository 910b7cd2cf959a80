"""The files of a repository that a model needs: its JSON, its tokenizer and its safetensors, or one model of its GGUF
files; never code or other formats.

Only files at the root count: subfolders hold copies for other programs (`original/`, `onnx/`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from tilewise.errors import InvalidCheckpoint
from tilewise.weights.folder import index_among, listed_shards, shards_among
from tilewise.weights.gguf.choice import choose, is_tower, parts_of, tower_of

CONFIG = "config.json"
_SINGLE = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")


def small_files(names: Collection[str]) -> list[str]:
    """Return config, tokenizer and template."""
    return [name for name in names if _is_small(name) and not name.startswith("consolidated")]


def weight_files(model: str, names: Collection[str], folder: Path, language: bool = True) -> list[str]:
    """Return the shards that the index in `folder` lists, or the single file, or whatever safetensors there are.

    Without `language`, shards that have nothing but the language model are left out.

    Raises InvalidCheckpoint if the repository does not hold all that the index lists.
    """
    index = index_among(names)
    if index is not None:
        listed = listed_shards(folder / index, language)
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
    if not shards_among(names) and any(map(is_tower, names)):
        listed = ", ".join(sorted(name for name in names if name.endswith(".gguf")))
        raise InvalidCheckpoint(
            f"{model} holds GGUF files, {listed}: name one by a part of its name, as in {model}:Q4_K_M."
        )
    if CONFIG not in names:
        raise InvalidCheckpoint(f"{model} has no {CONFIG}: it is not a checkpoint. It holds {_kinds(names)}.")
    if weights and not shards_among(names):
        raise InvalidCheckpoint(
            f"{model} has no *.safetensors weights, only {_kinds(names)}. Tilewise reads no other form: look for a "
            "repository that has them, or convert it with transformers' save_pretrained."
        )


def gguf_files(model: str, names: Collection[str], tag: str) -> list[str]:
    """Return the parts of the language model whose name has `tag` in it, and the vision tower.

    Raises InvalidCheckpoint if the repository does not hold them, or several that could be meant.
    """
    parts, tower = parts_of(choose(list(names), tag, model)), tower_of(list(names))
    absent = [name for name in parts if name not in names]
    if absent or tower is None:
        what = f"the part {absent[0]}" if absent else "one mmproj*.gguf, which has the vision tower"
        raise InvalidCheckpoint(f"{model} does not hold {what}: try another repository of the same model.")
    return [*parts, tower]


def lacking_gguf(folder: Path, tag: str) -> str | None:
    """Return a pattern of what a folder lacks of one model in GGUF files; None = nothing."""
    names = [path.name for path in folder.glob("*.gguf")] if folder.is_dir() else []
    try:
        gguf_files(str(folder), names, tag)
    except InvalidCheckpoint:
        return f"*{tag}*.gguf"
    return None


def lacking(folder: Path, weights: bool, language: bool = True) -> str | None:
    """Return the name of a needed file that a folder lacks, if there is one, judged by the folder alone.

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
        return next((name for name in listed_shards(folder / index, language) if name not in names), None)
    return None if shards_among(names) else _SINGLE


def _is_small(name: str) -> bool:
    if name.endswith(".index.json"):  # that of pytorch_model.bin, or of other formats
        return name.endswith(".safetensors.index.json")
    return name.endswith((".json", ".model", ".jinja")) or name == "merges.txt"


def _kinds(names: Collection[str]) -> str:
    """Say what a repository holds, as in `2 *.bin, 1 *.md`."""
    kinds = Counter(f"*{PurePosixPath(name).suffix}" if PurePosixPath(name).suffix else name for name in names)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8)) or "nothing"
