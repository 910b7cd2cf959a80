"""Which model, with which options, gave an answer: the part of a stored answer's key that is not the question."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import tilewise
from tilewise.config import EngineConfig
from tilewise.weights.checkpoint import Checkpoint

DECIDE = (
    "device",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "load_format",
    "batch_invariant",
    "mm_processor_kwargs",
    "tile_budget",
    "flash_router",
    "seed",
    "tokenizer",
    "tokenizer_revision",
    "exif_orientation",
    "interleave_mm_strings",
    "disable_additional_properties",
    "disable_any_whitespace",
    "max_image_pixels",
    "max_image_aspect_ratio",
)
"""Options that can change an answer. The others change when it comes, or whether it can be given at all."""
_SMALL = 1 << 20


def identity(config: EngineConfig, max_model_len: int) -> str:
    """A digest. Files of weights count by size and time of writing, small ones by what they hold."""
    folder = Checkpoint.of(config).folder.path
    facts = {
        "tilewise": tilewise.__version__,
        "files": {path.name: _file(path) for path in sorted(folder.iterdir()) if path.is_file()},
        "options": {name: getattr(config, name) for name in DECIDE},
        "max_model_len": max_model_len,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _file(path: Path) -> str:
    facts = path.stat()
    if facts.st_size > _SMALL:
        return f"{facts.st_size} bytes, {facts.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
