"""What is measured of the activations that layers read, on samples that go through the model block by block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.driving import normalised, prompt_of, random_tiles
from tests.tiny import SPECS, reference_model, write_hf
from tilewise.models.load import Architecture
from tilewise.quantize.activations import SampleActivations
from tilewise.sampling_params import SamplingParams
from tilewise.types import ImageInput, Request, Tile
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder


def request_of(spec: object, ids: list[int], pixels: Tensor, start: int) -> Request:
    tiles = tuple(Tile(bytes([number]), tile.numpy()) for number, tile in enumerate(pixels))
    images = (ImageInput(tiles, (1, 1), (56, 56), start),) if tiles else ()
    return Request("0", tuple(ids), SamplingParams(), images)


@pytest.mark.parametrize("name", ["qwen2-300m", "qwen3-6b-tied", "qwen3moe-300m-head"])
def test_what_layers_read_is_what_they_read_in_transformers(tmp_path, name):
    """Moments, lowest and highest number of some layers' inputs, over two samples, one of them with two tiles."""
    spec = SPECS[name]
    folder = write_hf(tmp_path / "hf", spec)
    theirs = reference_model(folder)
    seen: dict[str, list[Tensor]] = {}
    hooked = {
        "vision.layers.1.mlp.fc2": theirs.model.vision_tower.encoder.layer[1].mlp.fc2,
        "language.model.layers.0.self_attn.k_proj": theirs.model.language_model.layers[0].self_attn.k_proj,
        "language.model.layers.1.self_attn.o_proj": theirs.model.language_model.layers[1].self_attn.o_proj,
    }
    for reader, module in hooked.items():
        module.register_forward_pre_hook(lambda _, x, reader=reader: seen.setdefault(reader, []).append(x[0]) and None)
    pixels, text = random_tiles(spec, 2), [40, 41, 42, 43]
    ids = prompt_of(spec, [2])
    with torch.inference_mode():
        theirs(input_ids=torch.tensor([ids]), pixel_values=normalised(pixels))
        theirs(input_ids=torch.tensor([text]))
        architecture = Architecture.of(CheckpointFolder.open(folder))
        requests = [request_of(spec, ids, pixels, start=5), request_of(spec, text, pixels[:0], 0)]
        found = SampleActivations(architecture, SafetensorFiles(folder), requests, moments=True)
        for reader in hooked:
            x = torch.cat([some.flatten(0, -2) for some in seen[reader]])
            ours = found.inputs_of(reader[: reader.rindex(".", 0, reader.rindex("."))], reader)
            assert ours.moments is not None
            assert ours.lows is not None
            assert ours.highs is not None
            assert torch.allclose(ours.lows, x.amin(0).clamp(max=0), rtol=1e-4, atol=1e-4)
            assert torch.allclose(ours.highs, x.amax(0).clamp(min=0), rtol=1e-4, atol=1e-4)
            assert torch.allclose(ours.moments[0], x.T @ x, rtol=1e-3, atol=1e-3)
