"""GGUF, the files of llama.cpp: a language model in one, its vision tower and projector in another (`mmproj`).

A model's name means a text file, or one of several in a folder, and the mmproj file beside it. Their metadata become
the small files of an ordinary checkpoint, in a folder of the cache with links to the files themselves. It lies there
under a digest of the files' places, sizes and times of writing, so it is made once, and is read like any other
checkpoint; `INDEX` says where each tensor lies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewise.environment import Environment
from tilewise.errors import InvalidCheckpoint, InvalidConfig, UnknownModel
from tilewise.weights.folder import NATIVE, ORIGINAL, read_json
from tilewise.weights.gguf.config import PERMUTED, QUANTIZATION, config_of, family, generation_config
from tilewise.weights.gguf.container import GgufHeader
from tilewise.weights.gguf.vocabulary import tokenizer_files

INDEX = "gguf.index.json"
_VERSION = 1
"""Number that is raised when other small files would be made from the same GGUF files."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER_FILES = (*TOKENIZERS, "tokenizer_config.json", "merges.txt", "added_tokens.json",
                    "special_tokens_map.json", "chat_template.jinja", "chat_template.json")  # fmt: skip
_CONFIG_FILES = ("config.json", "generation_config.json", "preprocessor_config.json")
_FLOATS = ("F64", "F32", "F16", "BF16")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_TOWER_ORDER = ("bf16", "f16", "f32", "q8_0")
logger = logging.getLogger("tilewise")


@dataclass(frozen=True)
class GgufModelFiles:
    """The files of one model."""

    texts: tuple[Path, ...]
    """Parts of the language model, in order; nearly always one."""
    tower: Path

    @property
    def links(self) -> dict[str, Path]:
        """All files, by the names that they have in the folder that is made of them."""
        return {f"text-{number}.gguf": path for number, path in enumerate(self.texts)} | {"mmproj.gguf": self.tower}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """The place of a tensor: a file, and an offset in bytes. `shape` is that of its numbers."""

    file: str
    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def quantised(self) -> bool:
        return self.type not in _FLOATS


def find_choice(model: str, mmproj: str | None = None) -> GgufModelFiles | None:
    """Return the files that a name means: a .gguf file, a folder of them, or `FOLDER:Q4_K_M` for one of several.

    None where the name means no GGUF files. Raises UnknownModel for a file that is not there, InvalidCheckpoint where
    several could be meant, or a part or the vision tower is missing.
    """
    path = Path(model).expanduser()
    name, colon, tag = model.rpartition(":")
    if path.suffix.lower() == ".gguf":
        texts = _parts(path)
    elif _holds_only_gguf(path):
        texts = _the_one(path, None)
    elif colon and _holds_only_gguf(folder := Path(name).expanduser()):
        texts = _the_one(folder, tag)
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


def gguf_folder(choice: GgufModelFiles) -> Path:
    """Return the folder of a GGUF model, made if need be.

    Raises InvalidCheckpoint for files that are no InternVL, InvalidConfig where the cache cannot be written.
    """
    beside = choice.texts[0].parent
    small = [path for name in (*_CONFIG_FILES, *_TOKENIZER_FILES) if (path := beside / name).is_file()]
    folder = Environment.here().cache_folder / "gguf" / _digest([*choice.links.values(), *small])
    if is_gguf_folder(folder):
        return folder
    headers = {name: GgufHeader.read(path) for name, path in choice.links.items()}
    text = headers["text-0.gguf"]
    files = _small_files(text, headers["mmproj.gguf"], beside)
    files[INDEX] = json.dumps(_index(headers, text)).encode()
    try:
        _write(folder, files, choice.links)
    except OSError as error:
        raise InvalidConfig(f"{folder} cannot be written, XDG_CACHE_HOME names another place: {error}.") from None
    return folder


def is_gguf_folder(folder: Path) -> bool:
    """True if `gguf_folder` made the folder."""
    return (folder / INDEX).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """Read `INDEX`: `tensors`, with file, type, shape and offset of each by name, and `permuted_heads`.

    The latter are the numbers of query and KV heads where their rows are in llama.cpp's order, else None.
    """
    return read_json(folder / INDEX)


def indexed_tensors(folder: Path) -> dict[str, GgufTensor]:
    """Return all tensors of a folder that `gguf_folder` made, by name."""
    places = read_index(folder)["tensors"]
    return {name: GgufTensor(file, kind, tuple(shape), at) for name, (file, kind, shape, at) in places.items()}


def _digest(paths: list[Path]) -> str:
    facts = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    return hashlib.blake2b(repr((_VERSION, facts)).encode(), digest_size=12).hexdigest()


def _small_files(text: GgufHeader, tower: GgufHeader, beside: Path) -> dict[str, bytes]:
    """Return the small files; those that lie beside the text file are preferred to what its metadata say."""
    config = _config_beside(beside)
    files: dict[str, bytes] = {}
    if config is None:
        files["config.json"] = json.dumps(config_of(text, tower), indent=1).encode()
        files["generation_config.json"] = json.dumps(generation_config(text), indent=1).encode()
    else:
        config_of(text, tower)  # for its checks
        files |= _read(beside, _CONFIG_FILES)
        files["config.json"] = json.dumps(config | QUANTIZATION, indent=1).encode()
    if any((beside / name).is_file() for name in TOKENIZERS):
        return files | _read(beside, _TOKENIZER_FILES)
    return files | tokenizer_files(text)


def _config_beside(folder: Path) -> dict[str, Any] | None:
    """Return the config.json of an InternVL in a folder, or None; repositories also have others, which say little."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    known = config.get("architectures") in ([ORIGINAL], [NATIVE])
    return config if known and "vision_config" in config and {"llm_config", "text_config"} & config.keys() else None


def _read(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _index(headers: Mapping[str, GgufHeader], text: GgufHeader) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for file, container in headers.items():
        for tensor in container.tensors:
            if tensor.name in tensors:
                raise InvalidCheckpoint(f"{container.path}: the tensor {tensor.name} is there twice.")
            tensors[tensor.name] = [file, tensor.type.name, tensor.shape, tensor.offset]
    name = family(text)
    heads = text.get(f"{name}.attention.head_count", int)
    kv_heads = text.get(f"{name}.attention.head_count_kv", int, heads)
    return {"permuted_heads": [heads, kv_heads] if name in PERMUTED else None, "tensors": tensors}


def _write(folder: Path, files: Mapping[str, bytes], links: Mapping[str, Path]) -> None:
    """Write a folder all at once, so that it is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix="new-", dir=folder.parent))
    try:
        for name, content in files.items():
            (half / name).write_bytes(content)
        for name, path in links.items():
            (half / name).symlink_to(path.resolve())
        half.rename(folder)
    except OSError:
        shutil.rmtree(half, ignore_errors=True)
        if not is_gguf_folder(folder):  # else another process was faster
            raise
