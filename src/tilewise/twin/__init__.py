"""Twins: tiny checkpoints of noise, each with the structure, the files and the token order of a published one.

Here is the twin of a published checkpoint by its name. What can be refused is refused before torch is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tilewise.errors import InvalidRequest, UnknownModel, did_you_mean
from tilewise.host import require_extra
from tilewise.twin.configs import Dtype, Spelling
from tilewise.twin.specs import TWINS
from tilewise.weights.family import MEMBERS, RELATIVES, RelatedCheckpoint

Format = Literal["original", "hf"]


def write_twin(
    name: str, folder: Path, form: Format = "original", seed: int = 0, shards: int = 1, dtype: Dtype = "bfloat16"
) -> Path:
    """Write a checkpoint's twin to a folder that is new or empty; the name may have the organisation in front.

    A relative is written as it was published, whatever `form` says.

    Raises UnknownModel for a name that nothing was published under, InvalidRequest for a format that it was not
    published in, for a folder with something in it and for more shards than tensors.
    """
    relative = _relative(name)
    short = relative.name if relative else _known(name)
    spelling = _spelling(short) if form == "hf" and not relative else None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(f"{folder} is there already and not an empty folder: name a new one.")
    require_extra("transformers", "twin", "tilewise tools twin")
    from tilewise.twin.write import write_hf, write_original, write_relative

    if relative is not None:
        return write_relative(folder, relative, seed, shards, dtype)
    if spelling is None:
        return write_original(folder, TWINS[short], seed, shards, dtype)
    return write_hf(folder, TWINS[short], seed, spelling, shards, dtype=dtype)


def _relative(name: str) -> RelatedCheckpoint | None:
    return next((relative for relative in RELATIVES.values() if name in (relative.id, relative.name)), None)


def _known(name: str) -> str:
    short = name.removeprefix("OpenGVLab/")
    if short not in TWINS:
        near = (
            did_you_mean(short, (*TWINS, *(relative.name for relative in RELATIVES.values())))
            or " `tilewise tools twin --list` shows its members."
        )
        raise UnknownModel(f"The InternVL family has no {name!r}.{near}")
    return short


def _spelling(name: str) -> Spelling:
    """Return the spelling of the published -hf files. Raises InvalidRequest when there are none."""
    member = MEMBERS.get(name)
    if member is None or member.hf_name is None:
        raise InvalidRequest(f"{name} was not published in transformers' format: use the format original.")
    return "new" if member.generation == "3.5" else "old"
