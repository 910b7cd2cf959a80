"""Files of a checkpoint by their names: which are weights, and which of a repository a model needs.

Needed are its JSON, its tokenizer and its safetensors, or one model of its GGUF files; never code or other formats.
Only files at the root count: subfolders hold copies for other programs (`original/`, `onnx/`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.weights.folder import ADAPTER_CONFIG
from tilewise.weights.gguf import TOKENIZERS, choose, is_tower, parts_of, tower_of

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD, _INDEX = ".safetensors", ".safetensors.index.json"
_PART = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_LONGEST_NAME = 255  # bytes
_MOST_PARTS = 10_000
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
    """Return the sorted names of the shards; without `language`, of those that have something to encode tiles with.

    Raises InvalidCheckpoint for a file that is no index, or one with a name that is no plain file name.
    """
    places = tensor_places(index)
    for name in set(places.values()):
        if not _is_file_name(name):
            raise InvalidCheckpoint(f"{index}: the shard {name!r:.80} lies outside {index.parent}, or is no file name.")
    if language:
        return sorted(set(places.values()))
    from tilewise.weights.formats import is_of_encoder  # here, as it loads torch: so does whoever encodes tiles

    return sorted({shard for tensor, shard in places.items() if is_of_encoder(tensor)})


def _is_file_name(name: object) -> bool:
    """Return whether something names a file of a folder, and neither the folder nor anything outside."""
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME


def tensor_places(index: Path) -> dict[str, str]:
    """Return the shard of each tensor by name. Raises InvalidCheckpoint for a file that is no index."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        hash(frozenset(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidCheckpoint(f"{index} is not a weight index ({error!r}); {GET_AGAIN}.") from None
    return dict(places)


@dataclass(frozen=True)
class NeededFiles:
    """The files that are needed of a repository, by the names of all that it holds."""

    weights: bool = True
    """False if config and tokenizer suffice."""
    language: bool = True
    """False if shards that have nothing but the language model are not needed."""
    tag: str | None = None
    """A part of the name of one model in GGUF files, which say all that small files would; None = safetensors."""

    def check(self, model: str, names: Collection[str]) -> None:
        """Refuse, before anything is fetched, a repository that cannot be a checkpoint."""
        if self.tag is not None:
            _gguf_files(model, names, self.tag)
            return
        if not shards_among(names) and any(map(is_tower, names)):
            listed = ", ".join(sorted(name for name in names if name.endswith(".gguf")))
            raise InvalidCheckpoint(
                f"{model} holds GGUF files, {listed}: name one by a part of its name, as in {model}:Q4_K_M."
            )
        if CONFIG not in names and ADAPTER_CONFIG in names:
            raise InvalidCheckpoint(
                f"{model} is an adapter and no model: name the model that it was trained on, and --adapter {model}."
            )
        if CONFIG not in names:
            raise InvalidCheckpoint(f"{model} has no {CONFIG}: it is not a checkpoint. It holds {_kinds(names)}.")
        if self.weights and not shards_among(names):
            raise InvalidCheckpoint(
                f"{model} has no *.safetensors weights, only {_kinds(names)}. Tilewise reads no other form: look for a "
                "repository that has them, or convert it with transformers' save_pretrained."
            )

    def weight_files(self, model: str, names: Collection[str], folder: Path) -> list[str]:
        """Return the shards that the index in `folder` lists, or the single file, or whatever safetensors there are.

        Raises InvalidCheckpoint if the repository does not hold all that the index lists.
        """
        if self.tag is not None:
            return _gguf_files(model, names, self.tag)
        if not self.weights:
            return []
        index = index_among(names)
        if index is None:
            shards = shards_among(names)
            return [_SINGLE] if _SINGLE in shards else shards
        listed = listed_shards(folder / index, self.language)
        absent = [name for name in listed if name not in names]
        if absent:
            raise InvalidCheckpoint(
                f"{model}: {index} lists the shard {absent[0]}, which the repository does not hold "
                f"({len(absent)} of {len(listed)} are missing). Try another --revision, or tell its owner."
            )
        return listed

    def lacking(self, folder: Path) -> str | None:
        """Return the name of a needed file that a folder lacks, or a pattern of it, judged by the folder alone.

        The config is fetched after the other small files, so where it is, they are; but another tool may have put it
        there.
        """
        names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        if self.tag is not None:
            try:
                _gguf_files(str(folder), [name for name in names if name.endswith(".gguf")], self.tag)
            except InvalidCheckpoint:
                return f"*{self.tag}*.gguf"
            return None
        if CONFIG not in names:
            return CONFIG
        if not any(name in names for name in TOKENIZERS):
            return TOKENIZERS[0]
        if not self.weights:
            return None
        if (index := index_among(names)) is not None:
            return next((name for name in listed_shards(folder / index, self.language) if name not in names), None)
        return None if shards_among(names) else _SINGLE


def _gguf_files(model: str, names: Collection[str], tag: str) -> list[str]:
    """Return the parts of the language model whose name has `tag` in it, and the vision tower.

    Raises InvalidCheckpoint if the repository does not hold them, or several that could be meant.
    """
    parts, tower = parts_of(choose(list(names), tag, model)), tower_of(list(names))
    absent = [name for name in parts if name not in names]
    if absent or tower is None:
        what = f"the part {absent[0]}" if absent else "one mmproj*.gguf, which has the vision tower"
        raise InvalidCheckpoint(f"{model} does not hold {what}: try another repository of the same model.")
    return [*parts, tower]


def is_small(name: str) -> bool:
    """True for config, tokenizer, template and index."""
    if name.startswith("consolidated"):
        return False
    if name.endswith(".index.json"):  # that of pytorch_model.bin, or of other formats
        return name.endswith(_INDEX)
    return name.endswith((".json", ".model", ".jinja")) or name == "merges.txt"


def _kinds(names: Collection[str]) -> str:
    """Say what a repository holds, as in `2 *.bin, 1 *.md`."""
    kinds = Counter(f"*{PurePosixPath(name).suffix}" if PurePosixPath(name).suffix else name for name in names)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8)) or "nothing"
