"""Targets: files of checkpoints, which come from whoever published them: weights, tokenizers, configurations."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from safetensors.torch import save

from tests.fuzz.target import JSON, WORDS, altered, of_bytes, of_values, refusing
from tests.inputs.vocabulary import CONTROL, small_definition
from tests.tiny import SPECS, hf_config, original_config
from tilewise.errors import InvalidCheckpoint, InvalidConfig, InvalidRequest, UnknownModel
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.models.load import Architecture
from tilewise.runner.tile_store import EncodedTileFile, StoredTileRows
from tilewise.weights.adapter import Adapter
from tilewise.weights.file_names import NeededFiles, weight_names
from tilewise.weights.files import SafetensorFiles, known_names, open_files, shard_files
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.gguf import GgufModelFiles, gguf_folder
from tilewise.weights.merged_files import merged

REFUSALS = (InvalidCheckpoint, InvalidConfig, UnknownModel)


@contextmanager
def folder_of(**files: Any) -> Iterator[Path]:
    """Make a folder of files by their names with _ for dots: bytes as they are, and whatever else as JSON."""
    with TemporaryDirectory(prefix="tilewise-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as at:
        for name, content in files.items():
            path = Path(at) / name.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        yield Path(at)


def _shards() -> list[bytes]:
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    return [save(tensors), save({"c": torch.zeros(4, dtype=torch.int8)}, {"format": "pt"}), save({})]


@of_bytes(_shards)
def safetensors(data: bytes) -> None:
    """The tensors of a file are those that its header names, each within the file; or it is refused."""
    with folder_of(model__safetensors=data) as folder, refusing(*REFUSALS):
        files = SafetensorFiles(folder)
        for name in files.names:
            assert files.dtype(name)
            shape = files.stored(name).get_shape()
            assert list(files.tensor(name).shape) == list(shape)
            files.give_back(name)
        files.close()


_INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors", "b": "x"}}


@of_values(altered([_INDEX, {"weight_map": {}}]) | JSON)
def weight_index(value: Any) -> None:
    """An index lists files of its own folder, or is refused."""
    with folder_of(model__safetensors__index__json=value) as folder, refusing(*REFUSALS):
        for path in shard_files(folder):
            assert path.parent == folder
    with folder_of(model__safetensors__index__json=value) as folder, refusing(*REFUSALS):
        assert all(isinstance(name, str) for name in known_names(folder))


_NAMES = st.lists(
    st.sampled_from(
        [
            *("config.json", "model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors"),
            *("a.gguf", "a-00001-of-00003.gguf", "mmproj-f16.gguf", "tokenizer.json", "quant_model_description.json"),
            *("quant_model_weight_w8a8.safetensors", "consolidated.safetensors", "model-00001-of-99999.safetensors"),
        ]
    )
    | WORDS,
    max_size=6,
    unique=True,
)


@of_values(st.tuples(_NAMES, st.booleans(), st.none() | st.sampled_from(["Q4_K_M", "a", ""]) | WORDS))
def repository_listing(value: tuple[list[str], bool, str | None]) -> None:
    """Any list of names of a repository's files is a checkpoint's, or is refused before anything is fetched."""
    names, weights, tag = value
    needed = NeededFiles(weights, tag=tag)
    with folder_of() as folder, refusing(*REFUSALS):
        weight_names(names)
        needed.check("owner/name", names)
        assert set(needed.weight_files("owner/name", names, folder)) <= set(names)


_ADAPTER = {"peft_type": "LORA", "lora_alpha": 4, "alpha_pattern": {r"b\.\d": 2}, "use_rslora": False, "bias": "none"}
_BASE = {"a.0.weight": (3, 3), "a.1.weight": (4, 3)}
_ADAPTED: dict[str, tuple[int, ...]] = {
    "base_model.model.a.0.lora_A.weight": (2, 3),
    "base_model.model.a.0.lora_B.weight": (3, 2),
    "base_model.model.a.0.lora_magnitude_vector": (3,),
    "base_model.model.a.1.weight": (4, 3),
    "a.1.lora_embedding_A": (2, 4),
    "a.1.lora_embedding_B": (3, 2),
    "b": (1,),
}
_SIZES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
_PARTS = st.fixed_dictionaries({}, optional={name: st.just(sizes) | _SIZES for name, sizes in _ADAPTED.items()})


@of_values(st.tuples(altered([_ADAPTER]), _PARTS))
def adapter(value: tuple[Any, dict[str, Sequence[int]]]) -> None:
    """An adapter is merged into tensors of its base's shapes, or is refused."""
    config, shapes = value
    base, tensors = ({name: torch.ones(tuple(sizes)) for name, sizes in found.items()} for found in (_BASE, shapes))
    files = {"adapter_config__json": config, "adapter_model__safetensors": save(tensors)}
    with folder_of(model__safetensors=save(base)) as at, folder_of(**files) as folder, refusing(*REFUSALS):
        found = merged(SafetensorFiles(at), Adapter.open(folder))
        for name in found.names:
            assert list(found.tensor(name).shape) == found.stored(name).get_shape()
            found.give_back(name)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Write a value of the metadata, behind its type."""
    if not isinstance(value, (list, bool, int, float)):
        return struct.pack("<I", 8) + _text(str(value))
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        if kinds <= {str, dict, type(None)}:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, map(str, value)))
        if kinds <= {int, bool}:
            whole = [max(-(2**31), min(item, 2**31 - 1)) for item in value]
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *whole)
        if kinds <= {float}:
            return struct.pack(f"<IIQ{len(value)}d", 9, 12, len(value), *value)
        inner = [_value(item if isinstance(item, list) else [item]) for item in value]  # a list of lists
        return struct.pack("<IIQ", 9, 9, len(value)) + b"".join(item[4:] for item in inner)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<IQ", 10, value % 2**64) if value >= 0 else struct.pack("<Iq", 11, max(value, -(2**63)))
    if isinstance(value, float) and abs(value) < 3.4e38:
        return struct.pack("<If", 6, value)
    return struct.pack("<Id", 12, float(value))


def gguf_file(metadata: dict[str, Any], tensors: dict[str, Sequence[int]]) -> bytes:
    """Write a GGUF file with tensors of float32 zeros."""
    pairs = b"".join(_text(key) + _value(value) for key, value in metadata.items())
    infos, at = b"", 0
    for name, shape in tensors.items():
        infos += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), 0, at)
        at += 4 * int(torch.Size(shape).numel()) + 31 & ~31
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + pairs + infos
    return head + bytes(-len(head) % 32 + at)


_TOKENS = ["a", "b", "c", "ab", *CONTROL]
_TYPES = [1, 1, 1, 1, *[3] * len(CONTROL)]
_SIZES = {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 8}


def _text_metadata(name: str, tokenizer: str, **more: Any) -> dict[str, Any]:
    sizes = {f"{name}.{key}": value for key, value in _SIZES.items()}
    attention = {f"{name}.attention.head_count": 2, f"{name}.attention.layer_norm_rms_epsilon": 1e-6}
    vocabulary = {"model": tokenizer, "tokens": _TOKENS, "token_type": _TYPES, "eos_token_id": 5, **more}
    words = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    return {"general.architecture": name, "general.name": "Tiny", **sizes, **attention, **words}


_TOWER = {
    "general.architecture": "clip",
    "clip.projector_type": "internvl",
    **{f"clip.vision.{key}": value for key, value in {**_SIZES, "image_size": 28, "patch_size": 14}.items()},
    "clip.vision.attention.head_count": 2,
    "clip.vision.image_mean": [0.485, 0.456, 0.406],
}
_LANGUAGES = [
    _text_metadata("qwen2", "gpt2", pre="qwen2", merges=["a b"], add_bos_token=False),
    _text_metadata("llama", "llama", scores=[float(-number) for number in range(len(_TOKENS))], bos_token_id=4)
    | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0, "llama.rope.freq_base": 1e4},
]
_TENSORS = {"token_embd.weight": (len(_TOKENS), 8), "blk.0.attn_q.bias": (8,)}
_TOWER_TENSORS = {"mm.model.mlp.3.weight": (8, 8), "v.blk.0.ln1.bias": (8,)}


@cache
def _tower_file() -> bytes:
    return gguf_file(_TOWER, _TOWER_TENSORS)


def _read_gguf(text: bytes, tower: bytes) -> None:
    """Read a model in GGUF files as far as it goes without weights."""
    with folder_of(model__gguf=text, mmproj__gguf=tower) as at, patch.dict(os.environ, XDG_CACHE_HOME=str(at / "c")):
        folder = gguf_folder(GgufModelFiles((at / "model.gguf",), at / "mmproj.gguf"))
        tokenizer = Tokenizer.from_folder(folder)
        InputSpec.of(CheckpointFolder.open(folder), tokenizer)
        files = open_files(folder)
        for name in files.names:
            files.tensor(name)
            files.dtype(name)


@of_bytes(lambda: [gguf_file(metadata, _TENSORS) for metadata in _LANGUAGES])
def gguf_text(data: bytes) -> None:
    """A GGUF file of a language model is read, or refused."""
    with refusing(*REFUSALS, InvalidRequest):
        _read_gguf(data, _tower_file())


@of_bytes(lambda: [_tower_file()])
def gguf_tower(data: bytes) -> None:
    """A GGUF file of a vision tower is read, or refused."""
    with refusing(*REFUSALS, InvalidRequest):
        _read_gguf(gguf_file(_LANGUAGES[0], _TENSORS), data)


@of_values(altered(_LANGUAGES), examples=50)
def gguf_metadata(values: Any) -> None:
    """Metadata of any kind and type are read, or refused."""
    with refusing(*REFUSALS, InvalidRequest):
        if isinstance(values, dict):
            _read_gguf(gguf_file(values, _TENSORS), _tower_file())


def _use(tokenizer: Tokenizer) -> None:
    """Use a tokenizer as a request does: it may know few characters, and has to bear all."""
    ids = tokenizer.encode_text("a picture <img> 图\n")
    tokenizer.encode_raw("<|im_start|>user")
    size = tokenizer.vocab_size
    tokenizer.decode([*ids, 0, size - 1])
    stream = tokenizer.stream()
    for number in (*ids, 0):
        stream.add(number)
    assert isinstance(tokenizer.start_id, int | None)


@cache
def _definitions() -> tuple[Any, ...]:
    small = json.loads(small_definition())
    small["model"]["vocab"] = dict(list(small["model"]["vocab"].items())[:8])
    small["model"]["merges"] = []
    return (small,)


@of_values(st.deferred(lambda: altered(_definitions())), examples=50)
def tokenizer_definition(value: Any) -> None:
    """A tokenizer.json makes a tokenizer that reads any text, or is refused."""
    with folder_of(tokenizer__json=value) as folder, refusing(*REFUSALS):
        _use(Tokenizer.from_folder(folder))


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def sentencepiece_model(kind: int) -> bytes:
    """Write a model of a dozen pieces; `kind` is 1 for unigram and 2 for BPE."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), ("a", 1), ("b", 1), ("ab", 1), ("<0x0A>", 6), ("[X]", 4)]
    listed = (_field(1, text.encode()) + b"\x15" + struct.pack("<f", -1.0) + _field(3, of) for text, of in pieces)
    trainer, rules = _field(3, kind) + _field(35, 1), _field(3, 1) + _field(4, 1) + _field(5, 1)
    return b"".join(_field(1, piece) for piece in listed) + _field(2, trainer) + _field(3, rules)


_BESIDE = {"added_tokens_decoder": {str(9 + place): {"content": name} for place, name in enumerate(CONTROL)}}


_CUT_MAP = _field(3, _field(2, b"\0\1"))
"""A table of normalised characters that ends too early, at which the tokenizers library panics; found by fuzzing."""


@of_bytes(lambda: [sentencepiece_model(1), sentencepiece_model(2), sentencepiece_model(1) + _CUT_MAP])
def sentencepiece(data: bytes) -> None:
    """A sentencepiece model makes a tokenizer that reads any text, or is refused."""
    with folder_of(tokenizer__model=data, tokenizer_config__json=_BESIDE) as folder, refusing(*REFUSALS):
        _use(Tokenizer.from_folder(folder))


_TOKEN_FILES = [
    {
        "tokenizer_config": {**_BESIDE, "tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>"},
        "special_tokens_map": {"bos_token": {"content": "<s>"}, "additional_special_tokens": ["<img>"]},
        "added_tokens": {"<extra>": 15},
    },
    {
        "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3},
        "tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"},
        "added_tokens": {name: 4 + place for place, name in enumerate(CONTROL)},
    },
]


def _json_files(value: Any, known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return JSON files for `folder_of`, those whose names a checkpoint has."""
    names = {name for files in known for name in files}
    return {f"{name}__json": value[name] for name in names & value.keys()} if isinstance(value, dict) else {}


@of_values(altered(_TOKEN_FILES), examples=50)
def tokenizer_files(value: Any) -> None:
    """The JSON files of a tokenizer beside a sentencepiece model or merges make a tokenizer, or are refused."""
    files = _json_files(value, _TOKEN_FILES)
    files |= {"merges__txt": b"a b\n"} if "vocab__json" in files else {"tokenizer__model": sentencepiece_model(2)}
    with folder_of(**files) as folder, refusing(*REFUSALS):
        _use(Tokenizer.from_folder(folder))


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
_QUANTISED: list[dict[str, Any]] = [
    _GPTQ,
    {**_GPTQ, "dynamic": {"-:.*lm_head": {}, "+:.*down": {"bits": 8}}},
    {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
    {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    {"quant_method": "mxfp4", "modules_to_not_convert": ["vision"]},
    {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "packing_format": "auto_round:auto_gptq"},
    {"quant_method": "smooth_quant"},
    {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["re:.*lm_head", "vision_model"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
                "input_activations": None,
            }
        },
    },
]


@cache
def _configs() -> tuple[dict[str, Any], ...]:
    specs = [SPECS[name] for name in ("qwen2-300m", "qwen3moe-300m-head", "phi3-300m", "gptoss-300m-head")]
    plain = [original_config(spec) for spec in specs] + [hf_config(specs[0], "old"), hf_config(specs[1], "new")]
    quantised = [{**plain[0], "quantization_config": description} for description in _QUANTISED]
    return tuple(
        {
            "config": config,
            "preprocessor_config": {"min_patches": 1, "max_patches": 12, "crop_to_patches": True},
            "generation_config": {"eos_token_id": [1, 2], "temperature": 0.5},
            "tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "bos_token": "<img>"},
        }
        for config in (*plain, *quantised)
    )


_MODULES = ("language_model.model.layers.0.mlp.down_proj", "vision_model.encoder.layers.0.mlp.fc1", "mlp1.1",
            "language_model.lm_head", "language_model.model.layers.0.self_attn.q_proj")  # fmt: skip


@of_values(st.deferred(lambda: altered(_configs())), examples=50)
def configuration(value: Any) -> None:
    """The small files of a checkpoint describe a model and its inputs, or are refused."""
    files = _json_files(value, _configs())
    with folder_of(**files, tokenizer__json=_definition()) as folder, refusing(*REFUSALS, InvalidRequest):
        opened = CheckpointFolder.open(folder)
        spec = InputSpec.of(opened, Tokenizer.from_folder(folder))
        assert spec.tokens_per_tile >= 0
    with folder_of(**files) as folder, refusing(*REFUSALS):
        found = Architecture.of(CheckpointFolder.open(folder))
        assert found.dtype.is_floating_point
        assert found.config.tokens_per_tile > 0
        for module in _MODULES:
            if found.quantized:
                found.quantized(module)


@cache
def _definition() -> bytes:
    return small_definition().encode()


_ROWS = EncodedTileFile("key", (2, 3), torch.float32)
_TILE = StoredTileRows(torch.arange(6.0).view(2, 3), 0.5)
_DIGEST = bytes(16)


@of_bytes(lambda: [_ROWS.pack(_DIGEST, _TILE)])
def encoded_tile(data: bytes) -> None:
    """A file of the folder of encoded tiles is exactly what was written, or counts as not there."""
    found = _ROWS.unpack(_DIGEST, data)
    assert (found is None) is (data != _ROWS.pack(_DIGEST, _TILE))
