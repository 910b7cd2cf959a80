"""Rows of the demo's pictures, computed by the model's own tower, one tile at a time."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.served import PICTURES
from tilewise import SamplingParams
from tilewise.config import EngineConfig
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.models.load import Architecture
from tilewise.platforms.cpu import CpuPlatform


def demo_rows(picture: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """[tiles, tokens, hidden]"""
    found = ModelInputs.of(EngineConfig())
    preparer = found.plain_preparer(1024)
    with Image.open(PICTURES / picture) as image:
        (cut,) = preparer.prompt("<image>", [image], SamplingParams()).images
    model = Architecture.of(found.checkpoint.folder).load(dtype, CpuPlatform().ops(), context=1)
    with torch.inference_mode():
        return torch.cat([model.encoder(torch.from_numpy(tile.pixels.copy())[None]).rows for tile in cut.tiles])


def part_of(rows: Tensor) -> dict[str, Any]:
    """The content part, as vLLM's clients make it."""
    file = io.BytesIO()
    torch.save(rows, file)
    return {"type": "image_embeds", "image_embeds": base64.b64encode(file.getvalue()).decode()}
