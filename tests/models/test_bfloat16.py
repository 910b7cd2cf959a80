"""bfloat16, in which models are served: not further from the float32 answer than transformers in bfloat16 is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.conftest import FolderOf, TheirsOf
from tests.models.driving import all_logits, load, normalised, prompt_of, random_tiles
from tests.tiny import SPECS, reference_model
from tilewise.platforms.ops import Ops, TorchOps

NO_WORSE = 1.25
"""Ours may be this much further off than theirs, since roundings fall as they will."""


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_as_near_to_float32_as_the_reference(
    name: str, folder_of: FolderOf, hf_folder_of: FolderOf, theirs_of: TheirsOf
) -> None:
    """The logits are those of a text, and of pictures."""
    spec = SPECS[name]
    model = load(folder_of(name), TorchOps(), dtype=torch.bfloat16)
    reference = reference_model(hf_folder_of(name), torch.bfloat16)
    images: tuple[int, ...]
    for images in ((), (2, 1)):
        ids, pixels = prompt_of(spec, images), random_tiles(spec, sum(images))
        ours = all_logits(model, ids, pixels, spec.image_id)
        truth, theirs = their_logits(theirs_of(name), ids, pixels), their_logits(reference, ids, pixels)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        assert (ours - truth).abs().mean() < NO_WORSE * (theirs - truth).abs().mean(), images


@torch.inference_mode()
def their_logits(model: Any, ids: list[int], pixels: Tensor) -> Tensor:
    inputs = normalised(pixels).to(model.dtype) if len(pixels) else None
    logits: Tensor = model(input_ids=torch.tensor([ids]), pixel_values=inputs).logits[0]
    return logits


class Recorder(Ops):
    """Keeps the patches that the tower is given."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.first = getattr(self, "first", x)
        return super().linear(x, weight, bias)


def test_pixels_are_normalised_in_float32_and_then_rounded(folder_of: FolderOf) -> None:
    ops, pixels = Recorder(), random_tiles(SPECS["qwen2-300m"], 2)
    load(folder_of("qwen2-300m"), ops, dtype=torch.bfloat16).encoder(pixels)
    expected = torch.nn.functional.unfold(normalised(pixels), kernel_size=14, stride=14).transpose(1, 2).bfloat16()
    assert ops.first.dtype == torch.bfloat16
    assert torch.equal(ops.first, expected)
