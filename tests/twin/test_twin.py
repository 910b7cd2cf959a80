"""Twins of the family: every one can be written, is built as its model is, and has its tokens in the right order."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.tiny import reference_model
from tilewise.errors import InvalidRequest, UnknownModel
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.models.load import Architecture
from tilewise.twin import write_twin
from tilewise.twin.specs import TWINS, stand_ins
from tilewise.twin.vocabularies import VOCABULARIES
from tilewise.weights.family import MEMBERS, FamilyMember
from tilewise.weights.folder import CheckpointFolder

every_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=lambda member: member.name)
FLASH = "InternVL3_5-38B-Flash"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("twins")
    return cache(lambda name: write_twin(name, root / name))


@every_member
def test_every_member_is_written_as_what_it_is(member: FamilyMember, folder_of: Callable[[str], Path]) -> None:
    folder = CheckpointFolder.open(folder_of(member.name))
    architecture, language = Architecture.of(folder), member.language
    decoder, rope = architecture.config.decoder, language.series.rope
    assert architecture.backbone.model_type == language.series.backbone
    assert folder.config.get("template") == member.template
    assert (decoder.rope.kind, decoder.rope.theta, decoder.rope.factor) == (rope.kind, rope.theta, rope.factor)
    assert decoder.norm_eps == language.series.eps
    own_width = language.head_dim * language.heads != language.hidden
    assert (decoder.head_dim * decoder.num_heads != decoder.hidden_size) == own_width
    assert (decoder.num_kv_heads == decoder.num_heads) == (language.kv_heads == language.heads)
    assert (decoder.experts is None) == (language.experts is None)
    assert (decoder.window is None) == (language.series.window is None)
    assert architecture.config.vision.qk_norm == (member.vision == "6b")
    assert architecture.dtype == torch.bfloat16
    assert sum(file.stat().st_size for file in folder.path.iterdir()) < 1_000_000


@every_member
def test_every_member_has_its_own_start_and_end_tokens(member: FamilyMember, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(member.name)
    tokenizer = Tokenizer.from_folder(folder)
    spec = InputSpec.of(CheckpointFolder.open(folder), tokenizer)
    kind = member.language.series.tokenizer
    starts = {"internlm2": "<s>", "internlm3": "<s>", "llama3": "<|begin_of_text|>"}
    assert spec.start_id == (tokenizer.special_id(starts[kind]) if kind in starts else None)
    assert tokenizer.special_id(spec.template.stop_tokens[0]) in spec.end_ids
    rows = Architecture.of(CheckpointFolder.open(folder)).config.decoder.vocab_size
    assert (rows > tokenizer.vocab_size) == (kind in ("qwen3", "internlm3", "gpt_oss"))
    assert rows >= tokenizer.vocab_size


# Ids as published. Between two that stand behind the text, a twin has the same distance.
PUBLISHED = {
    "qwen2": {"<|im_end|>": 151645, "<IMG_CONTEXT>": 151648, "</box>": 151654},
    "qwen2.5": {"<|im_start|>": 151644, "<|video_pad|>": 151656, "<IMG_CONTEXT>": 151667, "</box>": 151673},
    "qwen3": {"<|im_end|>": 151645, "<think>": 151667, "</think>": 151668, "<IMG_CONTEXT>": 151671, "<ref>": 151674},
    "internlm2": {"<|plugin|>": 92538, "<|im_end|>": 92542, "<|im_start|>": 92543, "<IMG_CONTEXT>": 92546},
    "internlm3": {"<|im_end|>": 128131, "<|im_start|>": 128132, "<IMG_CONTEXT>": 128135, "</box>": 128141},
    "phi3": {"<|assistant|>": 32001, "<|system|>": 32006, "<|end|>": 32007, "<|user|>": 32010, "<IMG_CONTEXT>": 32013},
    "llama3": {"<img>": 128256, "<IMG_CONTEXT>": 128258, "</box>": 128264},
    "gpt_oss": {"<|startoftext|>": 199998, "<|return|>": 200002, "<|channel|>": 200005, "<|start|>": 200006,
                "<|end|>": 200007, "<|message|>": 200008, "<IMG_CONTEXT>": 200021},
}  # fmt: skip
LEADING = {
    "internlm2": {"<unk>": 0, "<s>": 1, "</s>": 2},
    "internlm3": {"<s>": 1, "</s>": 2},
    "phi3": {"<s>": 1},
    "yi": {"<|startoftext|>": 1, "<|endoftext|>": 2, "<|im_start|>": 6, "<|im_end|>": 7},
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_special_tokens_stand_in_the_published_order(kind: str) -> None:
    ids = VOCABULARIES[kind].ids  # type: ignore[index]
    offsets = {ids[token] - published for token, published in PUBLISHED[kind].items()}
    assert len(offsets) == 1


@pytest.mark.parametrize("kind", LEADING)
def test_sentencepiece_kinds_begin_with_their_control_tokens(kind: str) -> None:
    ids = VOCABULARIES[kind].ids  # type: ignore[index]
    assert {token: ids[token] for token in LEADING[kind]} == LEADING[kind]


def test_every_tokenizer_of_the_family_is_looked_at() -> None:
    used = {member.language.series.tokenizer for member in MEMBERS.values()}
    assert used == VOCABULARIES.keys() == PUBLISHED.keys() | LEADING.keys()


def test_ids_are_those_of_the_tokenizer_file(folder_of: Callable[[str], Path]) -> None:
    for name, spec in TWINS.items():
        if stand_ins()[name] == name:
            tokenizer = Tokenizer.from_folder(folder_of(name))
            assert {token: tokenizer.find_id(token) for token in spec.vocabulary.specials} == spec.vocabulary.ids
            assert tokenizer.vocab_size == spec.vocabulary.size


def test_flash_files_hold_the_router_under_its_published_names(folder_of: Callable[[str], Path]) -> None:
    ordinary, flash = (_names(folder_of(name)) for name in (FLASH.removesuffix("-Flash"), FLASH))
    pairs = ("weight", "bias")
    expected = {f"mlp2.{number}.{kind}" for number in (0, 1, 4, 7) for kind in pairs}
    expected |= {f"gating.gate.{number}.{kind}" for number in (0, 1) for kind in pairs}
    expected |= {"pooling_before_gating.query_token"}
    for stage in range(1, 5):
        pooling = f"pooling_before_gating.attn{stage}"
        expected |= {f"gating.block{stage}.{number}.{kind}" for number in (0, 3, 5) for kind in pairs}
        expected |= {f"{pooling}.in_proj_{kind}" for kind in pairs} | {f"{pooling}.out_proj.{kind}" for kind in pairs}
        expected |= {f"pooling_before_gating.norm{stage}.{kind}" for kind in pairs}
    assert flash - ordinary == expected
    assert ordinary <= flash


def _names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_flash_modules_are_of_the_published_shapes(folder_of: Callable[[str], Path]) -> None:
    """torch's own modules take them; C is a multiple of the 16 heads."""
    spec, tensors = TWINS[FLASH], load_file(folder_of(FLASH) / "model.safetensors")
    width, hidden = spec.vision_hidden, spec.hidden
    modules = {
        "pooling_before_gating.attn3": torch.nn.MultiheadAttention(width, 16),
        "pooling_before_gating.norm4": torch.nn.LayerNorm(width),
        "gating.block2.0": torch.nn.Linear(width, 4 * width),
        "gating.block2.3": torch.nn.Linear(4 * width, width),
        "gating.gate.1": torch.nn.Linear(width, 2),
        "mlp2.0": torch.nn.LayerNorm(16 * width),
        "mlp2.1": torch.nn.Linear(16 * width, 2 * hidden),
        "mlp2.4": torch.nn.Linear(2 * hidden, 2 * hidden),
        "mlp2.7": torch.nn.Linear(2 * hidden, hidden),
    }
    for name, module in modules.items():
        prefix = f"{name}."
        module.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    assert tensors["pooling_before_gating.query_token"].shape == (1, width)


def test_only_flash_configs_say_flash(folder_of: Callable[[str], Path]) -> None:
    keys = {"flash_mode", "flash_relative_threshold", "flash_absolute_threshold"}
    for name, expected in ((FLASH, keys), ("InternVL3_5-38B", set())):
        config = json.loads((folder_of(name) / "config.json").read_text())
        assert keys & config.keys() == expected


@pytest.mark.parametrize("name", ["InternVL2_5-2B", "InternVL3-8B", "InternVL3_5-30B-A3B"])
def test_the_hf_form_is_read_by_transformers_in_the_spelling_of_its_time(name: str, tmp_path: Path) -> None:
    folder = write_twin(name, tmp_path / "hf", "hf", shards=2, dtype="float32")
    config = json.loads((folder / "config.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    old = name != "InternVL3_5-30B-A3B"
    assert ("rope_theta" in config["text_config"]) == old
    assert ("language_model.lm_head.weight" in index) == old
    assert set(index.values()) == {file.name for file in folder.glob("*.safetensors")}
    model = reference_model(folder)
    assert model.config.image_token_id == TWINS[name].image_id
    spec = TWINS[name]
    embedding = model.get_input_embeddings().weight
    assert embedding.shape == (spec.vocab_size, spec.hidden)
    assert embedding.std() > 0.1


def test_seed_and_dtype_are_what_was_asked_for(tmp_path: Path) -> None:
    def weights(folder: str, **wishes: object) -> dict[str, torch.Tensor]:
        path = write_twin("InternVL3_5-GPT-OSS-20B-A4B-Preview-MXFP4", tmp_path / folder, **wishes)  # type: ignore[arg-type]
        return load_file(path / "model.safetensors")

    first, again, other = weights("a"), weights("b"), weights("c", seed=1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["mlp1.1.weight"], other["mlp1.1.weight"])
    single = weights("d", dtype="float32")
    assert {tensor.dtype for tensor in single.values()} == {torch.float32, torch.uint8}
    assert {tensor.dtype for tensor in first.values()} == {torch.bfloat16, torch.uint8}


@pytest.mark.parametrize(
    ("name", "wishes", "message"),
    [
        ("InternVL2-8B", {"form": "hf"}, "InternVL2-8B was not published in transformers' format"),
        (FLASH, {"form": "hf"}, "was not published in transformers' format"),
        ("InternVL3-8B", {"shards": 0}, r"shards must be between 1 and the number of tensors, \d+, got 0"),
        ("InternVL3-8B", {"shards": 1000}, r"shards must be between 1 and the number of tensors, \d+, got 1000"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    name: str, wishes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        write_twin(name, tmp_path / "new", **wishes)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InvalidRequest, match="is there already and not an empty folder"):
            write_twin("InternVL3-8B", taken)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_unknown_names_meet_the_nearest(tmp_path: Path) -> None:
    assert (write_twin("OpenGVLab/InternVL3-8B", tmp_path / "known") / "config.json").exists()
    with pytest.raises(UnknownModel, match=r"no 'InternVL3-8b'\. Did you mean InternVL3-8B"):
        write_twin("InternVL3-8b", tmp_path / "new")
    with pytest.raises(UnknownModel, match=r"no 'llava'\. `tilewise tools twin --list` shows"):
        write_twin("llava", tmp_path / "new")


def test_a_stand_in_differs_in_its_template_alone() -> None:
    for name, other in stand_ins().items():
        ours, theirs = vars(TWINS[name]), vars(TWINS[other])
        assert {key for key in ours if ours[key] != theirs[key]} <= {"template"}
