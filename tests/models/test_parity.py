"""Ours against transformers on tiny random weights, in float32 on the CPU, all within 1e-4 (found: see the table).

`pytest tests/models -s` prints the worst difference of each model and part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.models.conftest import ParityTable
from tests.models.driving import TEXT_IDS, all_logits, load, new_caches, normalised, paged, prompt_of, random_tiles
from tests.tiny import (
    ARCHITECTURES,
    IMAGE_ID,
    SPECS,
    TinySpec,
    hf_tensors,
    reference_model,
    write_hf,
    write_original,
)
from tilewise import LLM, SamplingParams
from tilewise.platforms.cpu.ops import CpuOps
from tilewise.platforms.reference import ReferenceOps

FolderOf = Callable[[str], Path]
TheirsOf = Callable[[str], Any]

every_model = pytest.mark.parametrize("name", SPECS)
both_ops = pytest.mark.parametrize("ops", [CpuOps(), ReferenceOps()], ids=lambda ops: type(ops).__name__)


@every_model
@both_ops
def test_vision_tower_alone(
    name: str, ops: ReferenceOps, folder_of: FolderOf, theirs_of: TheirsOf, parity: ParityTable
) -> None:
    model, pixels = load(folder_of(name), ops), random_tiles(SPECS[name], 3)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    with torch.inference_mode():
        ours = model.vision(pixels, mean, std, ops)
        theirs = theirs_of(name).model.vision_tower(normalised(pixels)).last_hidden_state[:, 1:]
    parity.check(name, type(ops).__name__, "vision tower", ours, theirs)


@every_model
@both_ops
def test_tower_shuffle_and_projector(
    name: str, ops: ReferenceOps, folder_of: FolderOf, theirs_of: TheirsOf, parity: ParityTable
) -> None:
    pixels = random_tiles(SPECS[name], 2)
    with torch.inference_mode():
        ours = load(folder_of(name), ops).encode(pixels).rows
        theirs = theirs_of(name).get_image_features(normalised(pixels), return_dict=True).pooler_output
    parity.check(name, type(ops).__name__, "tile rows", ours, theirs.view_as(ours))


@both_ops
def test_position_embeddings_of_another_tile_size(ops: ReferenceOps, tmp_path: Path, parity: ParityTable) -> None:
    """A tower trained on 4x4 patches reads tiles of 6x6."""
    spec = SPECS["qwen2-300m"]
    folder = write_original(tmp_path / "original", spec)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"force_image_size": 56', '"force_image_size": 84'))
    model, pixels = load(folder, ops), random_tiles(dataclasses.replace(spec, tile_size=84), 2)
    with torch.inference_mode():
        ours = model.encode(pixels).rows
        theirs = reference_model(write_hf(tmp_path / "hf", spec)).get_image_features(
            normalised(pixels), return_dict=True
        )
    parity.check("qwen2-300m", type(ops).__name__, "tile rows, resized", ours, theirs.pooler_output.view_as(ours))


@every_model
@both_ops
def test_decoder_alone(name: str, ops: ReferenceOps, folder_of: FolderOf, parity: ParityTable) -> None:
    model, theirs = load(folder_of(name), ops), their_decoder(folder_of(name), SPECS[name])
    ids = torch.tensor(TEXT_IDS)
    layout, blocks = paged(len(ids))
    with torch.inference_mode():
        x = F.embedding(ids, model.decoder.embedding)
        x = model.decoder(x, torch.arange(len(ids)), new_caches(model, blocks), layout, ops)
        parity.check(name, type(ops).__name__, "decoder", model.decoder.logits(x, ops), theirs(ids[None]).logits[0])


def their_decoder(folder: Path, spec: TinySpec) -> Any:
    """transformers' decoder alone, with the config of a whole -hf checkpoint and the tensors it was written from."""
    from transformers import AutoModelForCausalLM, InternVLConfig

    config = InternVLConfig.from_pretrained(folder).text_config
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    assert type(model).__name__ == ARCHITECTURES[spec.hf_decoder]
    tensors = {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in hf_tensors(spec).items()
        if "language_model" in name or name.startswith("lm_head")
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return model.eval()


@every_model
@both_ops
@pytest.mark.parametrize("images", [(), (1,), (3,), (1, 2), (2, 1, 3)], ids=str)
def test_whole_model_with_pictures_and_tiles(
    name: str,
    ops: ReferenceOps,
    images: tuple[int, ...],
    folder_of: FolderOf,
    theirs_of: TheirsOf,
    parity: ParityTable,
) -> None:
    ids, pixels = prompt_of(SPECS[name], images), random_tiles(SPECS[name], sum(images))
    ours = all_logits(load(folder_of(name), ops), ids, pixels)
    with torch.inference_mode():
        theirs = theirs_of(name)(
            input_ids=torch.tensor([ids]), pixel_values=normalised(pixels) if images else None
        ).logits[0]
    part = "logits, pictures" if images else "logits, text only"
    parity.check(name, type(ops).__name__, part, ours, theirs)


@every_model
def test_every_format_spelling_and_sharding_gives_the_same_bits(name: str, folder_of: FolderOf, tmp_path: Path) -> None:
    spec = SPECS[name]
    ids, pixels = prompt_of(spec, (1, 2)), random_tiles(spec, 3)
    expected = all_logits(load(folder_of(name), CpuOps()), ids, pixels)
    others = (
        write_hf(tmp_path / "new-3", spec, shards=3),
        write_hf(tmp_path / "old-1", spec, spelling="old"),
        write_hf(tmp_path / "old-3", spec, spelling="old", shards=3),
        write_original(tmp_path / "original-1", spec),
        write_original(tmp_path / "original-3", spec, shards=3),
    )
    for folder in others:
        assert torch.equal(all_logits(load(folder, CpuOps()), ids, pixels), expected), folder.name


def test_another_seed_gives_other_logits(folder_of: FolderOf, tmp_path: Path) -> None:
    spec = SPECS["qwen2-300m"]
    ids, pixels = prompt_of(spec, (1,)), random_tiles(spec, 1)
    ours = all_logits(load(folder_of("qwen2-300m"), CpuOps()), ids, pixels)
    other = all_logits(load(write_hf(tmp_path, spec, seed=1), CpuOps()), ids, pixels)
    assert (ours - other).abs().max() > 0.1


@every_model
def test_greedy_continuation_of_text(name: str, folder_of: FolderOf, theirs_of: TheirsOf) -> None:
    with small_llm(folder_of(name)) as llm:
        answer = llm.generate([list(TEXT_IDS)], GREEDY, use_tqdm=False)[0].outputs[0]
    assert answer.token_ids == their_continuation(theirs_of(name), TEXT_IDS)


@every_model
def test_greedy_continuation_of_pictures(name: str, folder_of: FolderOf, theirs_of: TheirsOf) -> None:
    """Two pictures that are tiles as they are, so that only the model is under test."""
    size = SPECS[name].tile_size
    pixels = random_tiles(SPECS[name], 2)
    pictures = [Image.fromarray(np.asarray(tile)) for tile in pixels]
    ids = [*TEXT_IDS[:5], IMAGE_ID, *TEXT_IDS[5:9], IMAGE_ID, *TEXT_IDS[9:]]
    assert pictures[0].size == (size, size)
    with small_llm(folder_of(name)) as llm:
        prompt = {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}
        output = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
    assert output.usage.tiles == 2
    expected = their_continuation(theirs_of(name), output.prompt_token_ids, pixel_values=normalised(pixels))
    assert output.outputs[0].token_ids == expected


GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


def small_llm(folder: Path) -> LLM:
    return LLM(str(folder), dtype="float32", max_model_len=128, encoder_cache_gb=0.001, kv_cache_memory_bytes=2**20)


def their_continuation(model: Any, ids: Any, **inputs: Any) -> list[int]:
    """The 16 tokens that transformers chooses, end tokens or not."""
    prompt = torch.tensor([list(ids)])
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=16,
        min_new_tokens=16,
        do_sample=False,
        eos_token_id=None,
        **inputs,
    )
    continuation: list[int] = found[0, prompt.shape[1] :].tolist()
    return continuation
