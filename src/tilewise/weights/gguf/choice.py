"""The files that a model name means: a text file, or one of several in a folder, and the mmproj file beside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewise.errors import InvalidCheckpoint, UnknownModel

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_TOWER_ORDER = ("bf16", "f16", "f32", "q8_0")
logger = logging.getLogger("tilewise")


@dataclass(frozen=True)
class GgufModelFiles:
    """The files of one model."""

    texts: tuple[Path, ...]
    """Parts of the language model, in order; nearly always one."""
    tower: Path


def find_choice(model: str, mmproj: str | None = None) -> GgufModelFiles | None:
    """Return the files that a name means: a .gguf file, a folder of them, or `FOLDER:Q4_K_M` for one of several.

    None where the name means no GGUF files. Raises UnknownModel for a file that is not there, InvalidCheckpoint where
    several could be meant, or a part or the vision tower is missing.
    """
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        texts = _parts(path)
    elif _holds_only_gguf(path):
        texts = _the_one(path, None)
    elif ":" in model and _holds_only_gguf(Path(model.rpartition(":")[0]).expanduser()):
        name, _, tag = model.rpartition(":")
        texts = _the_one(Path(name).expanduser(), tag)
    else:
        return None
    return GgufModelFiles(texts, _tower(texts[0], mmproj))


def choose(names: Sequence[str], tag: str | None, where: str) -> str:
    """Return the only language model among the names of a folder's files, or the one whose name has `tag` in it.

    If it is in parts, the first part is returned. Raises InvalidCheckpoint where several could be meant, or none.
    """
    models = [name for name in names if _is_text(name)]
    first = sorted(name for name in models if (part := _PART.search(name)) is None or int(part[1]) == 1)
    wanted = first if tag is None else [name for name in first if _has_tag(name, tag)]
    if len(wanted) == 1:
        return wanted[0]
    if not first:
        raise InvalidCheckpoint(f"{where} has no .gguf file of a language model, only {', '.join(names)}.")
    problem = "has several language models" if len(wanted) > 1 else f"has no language model {tag}"
    listed = ", ".join(wanted or first)
    example = wanted[0] if wanted else first[0]
    raise InvalidCheckpoint(
        f"{where} {problem}: {listed}. Name one by its file, {where}/{example}, or by a part of its name, "
        f"{where}:{_tag_of(example)}."
    )


def tower_of(names: Sequence[str]) -> str | None:
    """Return the mmproj among the names of a folder's files, of several the one in floats; None if none stands out."""
    towers = sorted(name for name in names if is_tower(name))
    for kind in _TOWER_ORDER:
        alike = [name for name in towers if re.search(rf"(?<![a-z]){kind}(?![0-9a-z])", name.lower())]
        if len(alike) == 1:
            return alike[0]
    return towers[0] if len(towers) == 1 else None


def parts_of(name: str) -> tuple[str, ...]:
    """Return the names of all parts of a model, by the name of any of them."""
    part = _PART.search(name)
    if part is None:
        return (name,)
    count = int(part[2])
    return tuple(f"{name[: part.start()]}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def is_tower(name: str) -> bool:
    return name.lower().endswith(".gguf") and "mmproj" in name.lower()


def _is_text(name: str) -> bool:
    low = name.lower()
    return low.endswith(".gguf") and "mmproj" not in low and "imatrix" not in low


def _holds_only_gguf(path: Path) -> bool:
    """True for a folder of .gguf files; where safetensors lie beside them, these are the checkpoint."""
    return path.is_dir() and any(path.glob("*.gguf")) and not any(path.glob("*.safetensors"))


def _the_one(folder: Path, tag: str | None) -> tuple[Path, ...]:
    names = sorted(path.name for path in folder.glob("*.gguf"))
    return _parts(folder / choose(names, tag, str(folder)))


def _parts(path: Path) -> tuple[Path, ...]:
    """Return all parts of a file, by the path of any of them. Raises UnknownModel or InvalidCheckpoint for a lack."""
    if not path.is_file():
        near = sorted(found.name for found in path.parent.glob("*.gguf")) if path.parent.is_dir() else []
        raise UnknownModel(f"{path}: no such file." + (f" There are {', '.join(near)}." if near else ""))
    names = parts_of(path.name)
    for name in names:
        if not path.with_name(name).is_file():
            raise InvalidCheckpoint(f"{path.parent} lacks {name}, one of {len(names)} parts; fetch it.")
    return tuple(map(path.with_name, names))


def _tower(text: Path, mmproj: str | None) -> Path:
    if mmproj is not None:
        path = Path(mmproj).expanduser()
        if not path.is_file():
            raise UnknownModel(f"mmproj={mmproj}: no such file.")
        return path
    towers = sorted(path.name for path in text.parent.glob("*.gguf") if is_tower(path.name))
    found = tower_of(towers)
    if found is None and towers:
        raise InvalidCheckpoint(
            f"{text.parent} has several vision towers, {', '.join(towers)}: name one with --mmproj."
        )
    if found is None:
        raise InvalidCheckpoint(
            f"{text.parent} has no mmproj*.gguf, which holds the vision tower of {text.name}: put it there, or name it "
            "with --mmproj (mmproj in Python)."
        )
    if len(towers) > 1:
        logger.info("Of the vision towers %s, %s is taken; --mmproj names another.", ", ".join(towers), found)
    return text.parent / found


def _has_tag(name: str, tag: str) -> bool:
    """True if a name has the tag in it as a whole, in any case: `Q4_K_M` does not have the tag `Q4_K`."""
    return (
        re.search(rf"(?<![a-z0-9]){re.escape(tag.lower())}(?![a-z0-9_])", _PART.sub(".gguf", name.lower())) is not None
    )


def _tag_of(name: str) -> str:
    """Return what tells a file from others of its model, as far as names say: the part behind the last dash or dot."""
    return re.split(r"[-.]", _PART.sub("", name).removesuffix(".gguf"))[-1]
