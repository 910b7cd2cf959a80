"""The index of a checkpoint's shards. Standard library only: a download is planned from it before torch is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from tilewise.errors import InvalidCheckpoint

INDEX = "model.safetensors.index.json"


def listed_shards(index: Path) -> list[str]:
    """Names of the shards, sorted, each a plain file name. Raises InvalidCheckpoint for any other index."""
    listed = set(tensor_places(index).values())
    for name in listed:
        if not isinstance(name, str) or Path(name).name != name:
            raise InvalidCheckpoint(f"{index}: the shard {name!r} lies outside {index.parent}.")
    return sorted(listed)


def tensor_places(index: Path) -> dict[str, str]:
    """The shard of each tensor by name. Raises InvalidCheckpoint for a file that is no index."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        hash(frozenset(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidCheckpoint(f"{index} is not a weight index ({error!r}); fetch the file again.") from None
    return dict(places)
