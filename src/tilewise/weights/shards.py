"""The index of a checkpoint's shards. Standard library only: a download is planned from it before torch is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from tilewise.errors import GET_AGAIN, InvalidCheckpoint

INDEX = "model.safetensors.index.json"
_SHARD, _INDEX = ".safetensors", ".safetensors.index.json"
_PART = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_MOST_PARTS = 10_000
_LANGUAGE = re.compile(r"(model\.)?language_model\.|lm_head\.")
"""How names of the language model's tensors begin, in both formats."""
_DESCRIPTION, _DESCRIBED = "quant_model_description", "quant_model_weight"
"""How the names of ModelSlim's files begin: those of its description, and of the weights that are described."""


def weight_names(names: Collection[str]) -> list[str]:
    """The shards and indexes among the files of a checkpoint, sorted.

    `consolidated*` is the same weights once more, in another program's names. ModelSlim's files may lie in a copy of
    the model that was quantised: where a description is, only the weights that it describes count.
    """
    found = [n for n in sorted(names) if n.endswith((_SHARD, _INDEX)) and not n.startswith("consolidated")]
    if any(name.startswith(_DESCRIPTION) and name.endswith(".json") for name in names):
        return [name for name in found if name.startswith(_DESCRIBED)] or found
    return found


def index_among(names: Collection[str]) -> str | None:
    """The index of a checkpoint's shards among its files, if it has one."""
    found = weight_names(names)
    if INDEX in found:
        return INDEX
    return next((name for name in found if name.startswith(_DESCRIBED) and name.endswith(_INDEX)), None)


def shards_among(names: Collection[str]) -> list[str]:
    """The shards among the files of a checkpoint that has no index."""
    return [name for name in weight_names(names) if name.endswith(_SHARD)]


def missing_parts(names: Sequence[str]) -> list[str]:
    """Shards that are not among these, though the numbers in a name (`-00001-of-00002`) say that they should be."""
    wanted: set[str] = set()
    for found in filter(None, map(_PART.fullmatch, names)):
        count = int(found["count"])
        numbers = range(1, count + 1) if count < _MOST_PARTS else ()
        wanted |= {f"{found['name']}-{number:05d}-of-{found['count']}{_SHARD}" for number in numbers}
    return sorted(wanted - set(names))


def listed_shards(index: Path, language: bool = True) -> list[str]:
    """Names of the shards, sorted, each a plain file name; without `language`, of those that have anything beside the
    language model. Raises InvalidCheckpoint for any other index."""
    places = tensor_places(index)
    for name in set(places.values()):
        if not isinstance(name, str) or Path(name).name != name:
            raise InvalidCheckpoint(f"{index}: the shard {name!r} lies outside {index.parent}.")
    return sorted({shard for tensor, shard in places.items() if language or not _LANGUAGE.match(tensor)})


def tensor_places(index: Path) -> dict[str, str]:
    """The shard of each tensor by name. Raises InvalidCheckpoint for a file that is no index."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        hash(frozenset(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidCheckpoint(f"{index} is not a weight index ({error!r}); {GET_AGAIN}.") from None
    return dict(places)
