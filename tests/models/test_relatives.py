"""Relatives of other names: their twins load as they were published, and compute what the family does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.driving import all_logits, load, normalised, prompt_of, random_tiles
from tests.tiny import TWINS, write_original
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.twin import write_twin
from tilewise.weights.family import RELATIVES, RelatedCheckpoint
from tilewise.weights.folder import CheckpointFolder

ONE_OF_EACH = ("InternVL-Chat-V1-5", "Mini-InternVL-Chat-4B-V1-5", "Skywork-R1V-38B", "Intern-S1", "Qianfan-OCR")
of_each = pytest.mark.parametrize(
    "relative", [found for found in RELATIVES.values() if found.name in ONE_OF_EACH], ids=lambda found: found.name
)
PICTURES = (2, 1)


def logits_of(folder: Path, name: str) -> torch.Tensor:
    spec = TWINS[name]
    pixels = random_tiles(spec, sum(PICTURES))
    return all_logits(load(folder, Ops()), prompt_of(spec, PICTURES), pixels, spec.image_id)


@of_each
def test_the_logits_are_those_of_the_member_that_it_is_like(relative: RelatedCheckpoint, tmp_path: Path) -> None:
    theirs = logits_of(write_original(tmp_path / "member", TWINS[relative.like.name]), relative.like.name)
    ours = logits_of(write_twin(relative.id, tmp_path / "relative", dtype="float32"), relative.like.name)
    assert torch.equal(ours, theirs)


def test_qianfan_ocr_computes_what_transformers_does(tmp_path: Path) -> None:
    from transformers import QianfanOCRForConditionalGeneration

    folder, like = write_twin("baidu/Qianfan-OCR", tmp_path / "twin", dtype="float32"), "InternVL3_5-4B"
    model, loading = QianfanOCRForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    spec = TWINS[like]
    with torch.inference_mode():
        theirs = model.eval()(
            input_ids=torch.tensor([prompt_of(spec, PICTURES)]),
            pixel_values=normalised(random_tiles(spec, sum(PICTURES))),
        ).logits[0]
    torch.testing.assert_close(logits_of(folder, like), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("relative", RELATIVES.values(), ids=lambda found: found.name)
def test_every_relative_is_written_as_what_it_is(relative: RelatedCheckpoint, tmp_path: Path) -> None:
    folder = CheckpointFolder.open(write_twin(relative.name, tmp_path / "twin"))
    assert folder.config.get("model_type") == relative.model_type
    architecture = Architecture.of(folder)
    assert architecture.backbone.model_type == relative.like.language.series.backbone
    assert architecture.config.vision.qk_norm == (relative.like.vision == "6b")
    assert architecture.config.vision.qkv_bias == (relative.like.vision == "300m")
    assert ("llm_config" in folder.config.values) != relative.transformers
