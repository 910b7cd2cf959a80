"""GGUF files of tiny models, written by the package `gguf`, against the same models in safetensors."""

from __future__ import annotations

import logging
import re
import shutil
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from PIL import Image
from torch import Tensor

from tests.inputs.kinds import NO_DUMMY_PREFIX, train
from tests.models.driving import TEXT_IDS, all_logits, load, prompt_of, random_tiles
from tests.tiny import SPECS, TinySpec, write_original
from tests.weights.broken import refused
from tests.weights.gguf_twin import in_blocks, vocabulary_values, write_gguf, write_rounded
from tests.weights.hub_server import HubServer
from tilewise import LLM, SamplingParams
from tilewise.environment import Environment
from tilewise.errors import InvalidCheckpoint, InvalidConfig, UnknownModel
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.weights.checkpoint import find_model
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.gguf.container import TYPES, GgufHeader
from tilewise.weights.quantization.gguf import BlockLayout
from tilewise.weights.quantization.stored import ExpectedTensor, StoredModule

QWEN2 = in_blocks(SPECS["qwen2-300m"])
OPS = Ops()
BLOCKS = [kind.name for kind in TYPES.values() if kind.numbers > 1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, but for compiled kernels, which take half a minute."""
    kernels = Environment.here().cache_folder / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = Environment.here().cache_folder
    own.mkdir(parents=True)
    (own / "kernels").symlink_to(kernels)


class Stored:
    """One tensor of a file."""

    def __init__(self, tensor: Tensor) -> None:
        self.stored = tensor

    def has(self, name: str) -> bool:
        return True

    def place(self, name: str) -> str:
        return "The checkpoint"

    def tensor(self, expected: ExpectedTensor) -> Tensor:
        return self.stored


def random_blocks(kind: Type, rows: int, blocks: int) -> np.ndarray:
    """Any bytes, but finite float16 where scales are."""
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": ()}
    places |= dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))
    random = np.random.default_rng(kind.value)
    found = random.integers(0, 256, (rows, blocks, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in places.get(kind.name, (0,)):
        found[..., at : at + 2] = random.normal(size=(rows, blocks, 1)).astype(np.float16).view(np.uint8)
    if kind == Type.MXFP4:
        found[..., 0] = random.integers(90, 160, (rows, blocks))
    return found.reshape(rows, -1)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_stand_for_the_numbers_of_the_owning_library(name: str) -> None:
    kind, rows = Type[name], 6
    stored = random_blocks(kind, rows, 512 // gguf.GGML_QUANT_SIZES[kind][0])
    expected = torch.from_numpy(gguf.quants.dequantize(stored, kind))
    form = BlockLayout(name).read(StoredModule(Stored(torch.from_numpy(stored)), "blk.0.attn_q"), rows, 512)
    assert form.shape == (rows, 512)
    assert torch.equal(form.dequantised(), expected)
    assert torch.equal(form.rows(slice(1, 4)).dequantised(), expected[1:4])
    assert torch.equal(form.columns(96, 160).dequantised(), expected[:, 96:256])
    bits = {"Q4_0": 4, "Q4_1": 4, "Q2_K": 4, "Q3_K": 4, "Q4_K": 4, "MXFP4": 4}.get(name, 8)
    assert form.tensors[0].nbytes == rows * 512 * bits // 8


def test_sizes_of_types_are_those_of_the_library() -> None:
    assert {number: (kind.name, kind.numbers, kind.bytes) for number, kind in TYPES.items()} == {
        number: (Type(number).name, *gguf.GGML_QUANT_SIZES[Type(number)]) for number in TYPES
    }


def logits_of(folder: Path, spec: TinySpec, dtype: torch.dtype = torch.float32) -> Tensor:
    return all_logits(load(folder, OPS, dtype=dtype), prompt_of(spec, [1]), random_tiles(spec, 1), spec.image_id)


@pytest.mark.parametrize(
    "name", ["qwen2-300m", "qwen2-6b-head", "qwen3-300m-head", "qwen3-6b-tied", "llama-6b", "internlm2-300m",
             "internlm3-300m-head", "qwen3moe-300m-head", "qwen2-tied-28px"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0], ids=lambda kind: kind.name)
def test_logits_are_those_of_the_same_numbers_in_safetensors(name: str, kind: Type, tmp_path: Path) -> None:
    spec = in_blocks(SPECS[name])
    ours = find_model(str(write_gguf(tmp_path / "gguf", spec, kind)))
    theirs = write_original(tmp_path / "st", spec) if kind == Type.F32 else write_rounded(tmp_path / "st", spec, kind)
    assert torch.allclose(logits_of(ours, spec), logits_of(theirs, spec), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q5_1, Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_other_types_too(kind: Type, tmp_path: Path) -> None:
    ours = find_model(str(write_gguf(tmp_path / "gguf", QWEN2, kind)))
    theirs = write_rounded(tmp_path / "st", QWEN2, kind)
    assert torch.allclose(logits_of(ours, QWEN2), logits_of(theirs, QWEN2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3-300m-head", "llama-6b", "qwen3moe-300m-head", "qwen2-tied-28px"])
def test_config_template_and_tokenizer_are_those_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    spec = in_blocks(SPECS[name])
    ours = CheckpointFolder.open(find_model(str(write_gguf(tmp_path / "gguf", spec, Type.F32))))
    theirs = CheckpointFolder.open(write_original(tmp_path / "st", spec))
    assert Architecture.of(ours).config == Architecture.of(theirs).config
    tokenizers = [Tokenizer.from_folder(folder.path) for folder in (ours, theirs)]
    assert tokenizers[0].spells_as(tokenizers[1])
    assert tokenizers[0].special_ids == tokenizers[1].special_ids
    text = "The heat of <|im_end|> 12 <img> in theory\n\n  é"
    assert tokenizers[0].encode_text(text) == tokenizers[1].encode_text(text)
    assert tokenizers[0].encode_raw(text) == tokenizers[1].encode_raw(text)
    specs = [InputSpec.of(folder, tokenizer) for folder, tokenizer in zip((ours, theirs), tokenizers, strict=True)]
    assert specs[0] == replace(specs[1], template=specs[0].template, end_ids=specs[0].end_ids)
    assert specs[0].end_ids <= specs[1].end_ids


@pytest.mark.parametrize(
    ("decoder", "name", "template"),
    [
        ("qwen2-300m", "InternVL3 8B Instruct", "internvl2_5"),
        ("qwen2-300m", "InternVL2_5-1B", "internvl2_5"),
        ("qwen2-300m", "InternVL2-1B", "Hermes-2"),
        ("internlm2-300m", "OpenGVLab InternVL2 8B", "internlm2-chat"),
        ("internlm2-300m", "InternVL2.5 8B", "internvl2_5"),
    ],
)
def test_the_template_is_that_of_the_generation(decoder: str, name: str, template: str, tmp_path: Path) -> None:
    folder = write_gguf(tmp_path, in_blocks(SPECS[decoder]), Type.F32, **{"general.name": name})
    assert CheckpointFolder.open(find_model(str(folder))).config.get("template") == template


def test_bytes_are_counted_before_loading_as_they_are_kept(tmp_path: Path) -> None:
    folder = find_model(str(write_gguf(tmp_path, QWEN2, Type.Q4_0)))
    architecture = Architecture.of(CheckpointFolder.open(folder))
    kept = 0

    def watch(name: str, tensor: Tensor) -> None:
        nonlocal kept
        kept += tensor.nbytes

    architecture.load(torch.bfloat16, OPS, 64, watch=watch)
    assert abs(architecture.count_bytes(OPS, torch.bfloat16) - kept) < 0.01 * kept
    floats = write_original(tmp_path / "st", QWEN2)
    assert kept < 0.6 * Architecture.of(CheckpointFolder.open(floats)).count_bytes(OPS, torch.bfloat16)


def test_a_tied_head_is_kept_as_it_is_stored(tmp_path: Path) -> None:
    spec = in_blocks(SPECS["qwen2-tied-28px"])
    folder = find_model(str(write_gguf(tmp_path, spec, Type.Q8_0)))
    shapes: dict[str, Tensor] = {}
    Architecture.of(CheckpointFolder.open(folder)).load(torch.bfloat16, OPS, 64, watch=shapes.__setitem__)
    assert shapes["language.lm_head.weight"].dtype == torch.uint8
    assert shapes["language.model.embed_tokens.weight"].dtype == torch.bfloat16


def test_a_file_in_parts_is_read_by_the_name_of_any(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole", QWEN2, Type.Q8_0)
    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy(whole / "mmproj-model.gguf", parts)
    reader = gguf.GGUFReader(whole / "model.gguf")
    for number, tensors in enumerate((reader.tensors[::2], reader.tensors[1::2]), start=1):
        writer = gguf.GGUFWriter(parts / f"model-{number:05d}-of-00002.gguf", "qwen2")
        if number == 1:
            for field in list(reader.fields.values())[4:]:  # behind the head and general.architecture
                kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), kind, inner)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    expected = logits_of(find_model(str(whole)), QWEN2)
    for name in ("", "model-00002-of-00002.gguf"):
        assert torch.equal(logits_of(find_model(str(parts / name)), QWEN2), expected)
    (parts / "model-00002-of-00002.gguf").unlink()
    refused(InvalidCheckpoint, lambda: find_model(str(parts)), "model-00002-of-00002.gguf", "2 parts")


def test_config_and_tokenizer_beside_the_file_come_first(tmp_path: Path) -> None:
    folder = write_gguf(tmp_path, replace(QWEN2, max_tiles=3), Type.Q8_0)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(write_original(tmp_path / "st", QWEN2) / name, folder)
    found = CheckpointFolder.open(find_model(str(folder)))
    assert found.config.get("max_dynamic_patch") == QWEN2.max_tiles
    assert found.quantization == "gguf"
    assert (found.path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert logits_of(found.path, QWEN2).isfinite().all()


def test_the_folder_is_made_once_and_anew_when_a_file_changes(tmp_path: Path) -> None:
    folder = write_gguf(tmp_path / "m", QWEN2, Type.Q8_0)
    first = find_model(str(folder))
    written = (first / "tokenizer.json").stat().st_mtime_ns
    assert find_model(str(folder / "model.gguf")) == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == written
    write_gguf(tmp_path / "m", QWEN2, Type.Q4_0)
    assert find_model(str(folder)) != first


def test_of_several_files_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_gguf(tmp_path / "m", QWEN2, Type.Q8_0, "Tiny-Q8_0.gguf", "mmproj-Tiny-f16.gguf")
    write_gguf(folder, QWEN2, Type.F32, "Tiny-Q4_K_M.gguf", "mmproj-Tiny-f32.gguf")
    listed = refused(InvalidCheckpoint, lambda: find_model(str(folder)), "Tiny-Q8_0.gguf", "Tiny-Q4_K_M.gguf")
    named = re.findall(r"\S+:Q4_K_M", listed)
    assert named == [f"{folder}:Q4_K_M"]
    with caplog.at_level(logging.INFO, "tilewise"):
        assert find_model(named[0]) == find_model(str(folder / "Tiny-Q4_K_M.gguf"))
    assert "mmproj-Tiny-f16.gguf is taken" in caplog.text
    other = find_model(f"{folder}:q4_k_m", mmproj=str(folder / "mmproj-Tiny-f32.gguf"))
    assert other != find_model(named[0])
    refused(InvalidCheckpoint, lambda: find_model(f"{folder}:Q4_K"), "no language model Q4_K", "Tiny-Q8_0.gguf")
    refused(UnknownModel, lambda: find_model(str(folder / "Tiny.gguf")), "no such file", "Tiny-Q8_0.gguf")


def test_a_vision_tower_that_is_missing_or_of_another_model_is_named(tmp_path: Path) -> None:
    folder = write_gguf(tmp_path / "m", QWEN2, Type.Q8_0)
    other = write_gguf(tmp_path / "o", replace(QWEN2, hidden=96), Type.Q8_0)
    tower = folder / "mmproj-model.gguf"
    refused(
        InvalidCheckpoint,
        lambda: find_model(str(folder), mmproj=str(other / "mmproj-model.gguf")),
        *("rows of 96 numbers", "takes 64", "--mmproj"),
    )
    refused(InvalidCheckpoint, lambda: find_model(str(folder), mmproj=str(folder / "model.gguf")), "no vision tower")
    refused(InvalidCheckpoint, lambda: find_model(str(tower)), "general.architecture is 'clip'", "qwen2")
    refused(UnknownModel, lambda: find_model(str(folder), mmproj="no.gguf"), "mmproj=no.gguf")
    refused(InvalidConfig, lambda: find_model("demo", mmproj=str(tower)), "belongs to a model in GGUF files")
    tower.unlink()
    refused(InvalidCheckpoint, lambda: find_model(str(folder)), "no mmproj*.gguf", "--mmproj")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.pre", "falcon", "tokenizer.ggml.pre is 'falcon'"),
        ("tokenizer.ggml.model", "bert", "tokenizer.ggml.model is 'bert'"),
        ("tokenizer.ggml.token_type", [1, 1], "have 2 types"),
        ("qwen2.context_length", None, "does not say qwen2.context_length"),
        ("qwen2.embedding_length", "64", "qwen2.embedding_length has the wrong type"),
        ("clip.projector_type", "gemma3", "clip.projector_type is 'gemma3'"),
        ("clip.vision.image_mean", [0.5, 0.5, 0.5], "clip.vision.image_mean is [0.5, 0.5, 0.5]"),
        ("clip.use_gelu", False, "not GELU"),
    ],
)
def test_metadata_that_cannot_be_used_is_named(key: str, value: object, message: str, tmp_path: Path) -> None:
    folder = write_gguf(tmp_path, QWEN2, Type.F32, **{key: value})
    refused(InvalidCheckpoint, lambda: find_model(str(folder)), message)


def damaged(folder: Path, change: object) -> Path:
    path = write_gguf(folder, QWEN2, Type.Q8_0) / "model.gguf"
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    return path


def _with_type(number: int) -> object:
    """The type of the first tensor: behind its name, two sizes, and the number of these."""

    def change(data: bytes) -> bytes:
        at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
        return data[:at] + struct.pack("<I", number) + data[at + 4 :]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "cannot be read as GGUF"),
        (lambda data: b"PK\x03\x04" + data[4:], "is not a GGUF file"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "GGUF version 1"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
        (lambda data: data[:100], "ends in the middle of its head"),
        (lambda data: data[:-64], "it was cut off"),
        (lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:], "ends in the middle of its head"),
        (lambda data: data[:16] + struct.pack("<Q", 2**60) + data[24:], "ends in the middle of its head"),
        (_with_type(18), "token_embd.weight has type IQ3_XXS, which is not read; read are F32"),
        (_with_type(99), "type number 99"),
        (_with_type(12), "blocks of 256"),
    ],
)
def test_damaged_files_are_named(change: object, message: str, tmp_path: Path) -> None:
    path = damaged(tmp_path, change)
    refused(InvalidCheckpoint, lambda: find_model(str(path)), str(path), message)


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    """The second row of a matrix in Q8_0, whose blocks of 32 numbers begin with a float16."""
    path = write_gguf(tmp_path, QWEN2, Type.Q8_0) / "model.gguf"
    tensor = GgufHeader.read(path).by_name["blk.1.ffn_down.weight"]
    data, row = bytearray(path.read_bytes()), tensor.shape[-1] // 32 * 34
    data[tensor.offset + row : tensor.offset + row + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    folder = find_model(str(path))
    refused(
        InvalidCheckpoint, lambda: load(folder, OPS), f"{path}: the tensor blk.1.ffn_down.weight", "in row 1", "finite"
    )


def test_any_byte_that_is_wrong_in_the_head_ends_in_an_error_or_in_a_head(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, QWEN2, Type.Q8_0) / "mmproj-model.gguf"
    data = path.read_bytes()
    start = min(tensor.offset for tensor in GgufHeader.read(path).tensors)
    random = np.random.default_rng(0)
    for at in random.integers(0, start, 300):
        path.write_bytes(data[:at] + bytes([random.integers(256)]) + data[at + 1 :])
        with suppress(InvalidCheckpoint):
            GgufHeader.read(path)


def test_text_alone_needs_no_tile(tmp_path: Path) -> None:
    folder = find_model(str(write_gguf(tmp_path, QWEN2, Type.Q8_0)))
    nothing = torch.empty(0, QWEN2.tile_size, QWEN2.tile_size, 3, dtype=torch.uint8)
    assert all_logits(load(folder, OPS), TEXT_IDS, nothing, QWEN2.image_id).isfinite().all()


def test_a_folder_of_files_answers_as_its_safetensors_do(tmp_path: Path) -> None:
    ours = write_gguf(tmp_path / "gguf", QWEN2, Type.Q8_0)
    theirs = write_rounded(tmp_path / "st", QWEN2, Type.Q8_0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    parts = [{"type": "image_pil", "image_pil": picture}, {"type": "text", "text": "the rain in"}]
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    answers = []
    for model in (ours / "model.gguf", theirs):
        with LLM(str(model), max_model_len=512, dtype="float32") as llm:
            answers.append(llm.chat([{"role": "user", "content": parts}], greedy)[0].outputs[0].token_ids)
    assert len(answers[0]) == 8
    assert answers[0] == answers[1]


@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_of_a_repository_one_model_is_fetched_with_its_tower(where: str, hub: HubServer, tmp_path: Path) -> None:
    folder = write_gguf(tmp_path / "m", QWEN2, Type.Q8_0, "Tiny-Q8_0.gguf", "mmproj-Tiny-f16.gguf")
    write_gguf(folder, QWEN2, Type.F32, "Tiny-Q4_K_M.gguf", "mmproj-Tiny-f32.gguf")
    hub.add("tiny/gguf", {path.name: path.read_bytes() for path in folder.iterdir()})
    refused(InvalidCheckpoint, lambda: find_model("tiny/gguf", hub=where), "Tiny-Q8_0.gguf", "tiny/gguf:Q4_K_M")
    refused(InvalidCheckpoint, lambda: find_model("tiny/gguf:Q5", hub=where), "no language model Q5", "Tiny-Q8_0.gguf")
    assert not hub.fetched()
    found = find_model("tiny/gguf:Q8_0", hub=where)
    assert hub.fetched() == ["Tiny-Q8_0.gguf", "mmproj-Tiny-f16.gguf"]
    assert torch.equal(logits_of(found, QWEN2), logits_of(find_model(f"{folder}:Q8_0"), QWEN2))
    for again in ("tiny/gguf:q8_0", "tiny/gguf/Tiny-Q8_0.gguf"):
        assert find_model(again, hub=where) == found
    assert len(hub.fetched()) == 2
    del hub.repos["tiny/gguf"].files["mmproj-Tiny-f16.gguf"], hub.repos["tiny/gguf"].files["mmproj-Tiny-f32.gguf"]
    refused(InvalidCheckpoint, lambda: find_model("tiny/gguf:Q4_K_M", hub=where), "does not hold one mmproj*.gguf")


ADDED = ("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>")


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_reads_text_as_its_library_does(prefix: bool, tmp_path: Path) -> None:
    model = train()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model if prefix else model + NO_DUMMY_PREFIX)
    count = processor.get_piece_size()
    kinds = ((processor.is_unknown, 2), (processor.is_control, 3), (processor.is_byte, 6))
    spec = replace(in_blocks(SPECS["internlm2-300m"]), vocab=count + len(ADDED))
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": [*map(processor.id_to_piece, range(count)), *ADDED],
        "scores": [*map(processor.get_score, range(count)), *[-1000.0] * len(ADDED)],
        "token_type": [next((kind for is_one, kind in kinds if is_one(n)), 1) for n in range(count)] + [3] * len(ADDED),
        "merges": None,
        "add_space_prefix": prefix,
        "add_bos_token": True,
        "bos_token_id": processor.bos_id(),
        "eos_token_id": count,
    }
    changed = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    folder = CheckpointFolder.open(find_model(str(write_gguf(tmp_path, spec, Type.F32, **changed))))
    tokenizer = Tokenizer.from_folder(folder.path)
    for text in ("the picture shows a red panda", " a  b\n\nc", "你好 façade 😀"):
        assert tokenizer.encode_text(text) == processor.encode(text)
    assert tokenizer.encode_raw("<|im_start|>") == [count + 1]
    assert count + 1 not in tokenizer.encode_text("<|im_start|>")
    assert InputSpec.of(folder, tokenizer).start_id == processor.bos_id()


def test_rows_that_no_text_reaches_do_not_move_the_tokens_behind_them(tmp_path: Path) -> None:
    """As in Qwen3, whose table has unused rows behind its tokens, and others between."""
    values = {key: value for key, value in vocabulary_values(QWEN2).items() if isinstance(value, list)}
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    at = types.index(3) + 2
    longer = [*tokens[:at], "[PAD]", *tokens[at:], "[PAD1]", "[PAD2]"]
    changed = {
        "tokenizer.ggml.tokens": longer,
        "tokenizer.ggml.token_type": [*types[:at], 5, *types[at:], 5, 5],
    }
    folder = write_gguf(tmp_path, replace(QWEN2, vocab=len(longer)), Type.F32, **changed)
    tokenizer = Tokenizer.from_folder(find_model(str(folder)))
    for token, kind in zip(longer, changed["tokenizer.ggml.token_type"], strict=True):
        if kind == 3:
            assert tokenizer.special_id(token) == longer.index(token)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.tokens", [1, 2]),
        ("tokenizer.ggml.merges", [1.5]),
        ("tokenizer.ggml.token_type", ["1"]),
        ("tokenizer.ggml.token_type", [-1]),
        ("clip.vision.image_mean", ["a", "b", "c"]),
    ],
)
def test_lists_of_another_type_are_refused(key: str, value: list[object], tmp_path: Path) -> None:
    if key.endswith("token_type"):
        value *= len(vocabulary_values(QWEN2)["tokenizer.ggml.tokens"])
    folder = write_gguf(tmp_path, QWEN2, Type.F32, **{key: value})
    refused(InvalidCheckpoint, lambda: find_model(str(folder)), key)


def test_the_largest_number_of_single_precision_is_read(tmp_path: Path) -> None:
    """Its shorter forms in decimals are larger than it is."""
    largest = float(np.finfo(np.float32).max)
    folder = write_gguf(tmp_path, QWEN2, Type.F32, **{"qwen2.rope.freq_base": largest})
    assert GgufHeader.read(folder / "model.gguf").get("qwen2.rope.freq_base", float) == largest
