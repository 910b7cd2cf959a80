"""The folder of a GGUF model: small files made of its metadata, and links to the files themselves.

It lies in the cache, under a digest of the files' places, sizes and times of writing, so it is made once. It is read
like any other checkpoint; `INDEX` says where each tensor lies.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidCheckpoint, InvalidConfig
from tilewise.weights.folder import NATIVE, ORIGINAL, read_json
from tilewise.weights.gguf.choice import GgufModelFiles
from tilewise.weights.gguf.config import PERMUTED, QUANTIZATION, config_of, family, generation_config
from tilewise.weights.gguf.container import GgufHeader
from tilewise.weights.gguf.vocabulary import tokenizer_files

INDEX = "gguf.index.json"
_VERSION = 1
"""Number that is raised when other small files would be made from the same GGUF files."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER_FILES = (*_TOKENIZERS, "tokenizer_config.json", "merges.txt", "added_tokens.json",
                    "special_tokens_map.json", "chat_template.jinja", "chat_template.json")  # fmt: skip
_CONFIG_FILES = ("config.json", "generation_config.json", "preprocessor_config.json")


def gguf_folder(choice: GgufModelFiles) -> Path:
    """Return the folder of a GGUF model, made if need be.

    Raises InvalidCheckpoint for files that are no InternVL, InvalidConfig where the cache cannot be written.
    """
    beside = choice.texts[0].parent
    small = [path for name in (*_CONFIG_FILES, *_TOKENIZER_FILES) if (path := beside / name).is_file()]
    folder = _cache() / _digest([*choice.texts, choice.tower, *small])
    if (folder / INDEX).is_file():
        return folder
    texts, tower = [GgufHeader.read(path) for path in choice.texts], GgufHeader.read(choice.tower)
    files = _small_files(texts[0], tower, beside)
    files[INDEX] = json.dumps(_index(texts, tower)).encode()
    try:
        _write(folder, files, _links(choice))
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


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tilewise" / "gguf"


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
    if any((beside / name).is_file() for name in _TOKENIZERS):
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


def _links(choice: GgufModelFiles) -> dict[str, Path]:
    return {f"text-{number}.gguf": path for number, path in enumerate(choice.texts)} | {"mmproj.gguf": choice.tower}


def _index(texts: list[GgufHeader], tower: GgufHeader) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for file, container in [*((f"text-{n}.gguf", text) for n, text in enumerate(texts)), ("mmproj.gguf", tower)]:
        for tensor in container.tensors:
            if tensor.name in tensors:
                raise InvalidCheckpoint(f"{container.path}: the tensor {tensor.name} is there twice.")
            tensors[tensor.name] = [file, tensor.type.name, tensor.shape, tensor.offset]
    name = family(texts[0])
    heads = texts[0].get(f"{name}.attention.head_count", int)
    kv_heads = texts[0].get(f"{name}.attention.head_count_kv", int, heads)
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
        if not (folder / INDEX).is_file():  # else another process was faster
            raise
