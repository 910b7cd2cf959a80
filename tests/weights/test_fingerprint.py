"""The key of encoded tiles: every tensor and every number that rows depend on changes it, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.models.flash import write_flash
from tests.tiny import SPECS, write_original
from tilewise.models.load import Architecture
from tilewise.platforms.ops import TorchOps
from tilewise.runner.tile_store import ENCODER_PARTS, model_key
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.sources import Fingerprint, RandomSource


@dataclass
class Altered(RandomSource):
    """Noise whose last bit is another in one tensor; keeps the names that were read."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(torch.bfloat16)
        self.altered, self.names = name, []

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.names.append(name)
        tensor = super().read(name, shape)
        if name == self.altered:
            tensor.view(torch.int16).flatten()[-1] ^= 1
        return tensor


def fingerprint(architecture: Architecture, source: RandomSource) -> bytes:
    found = Fingerprint(ENCODER_PARTS)
    architecture.build(source, TorchOps(), 16, watch=found)
    return found.digest()


@pytest.mark.parametrize("flash", [False, True])
def test_one_bit_of_any_tensor_of_the_encoder_and_of_no_other_makes_another_key(tmp_path, flash):
    write_flash(tmp_path) if flash else write_original(tmp_path, SPECS["qwen2-6b-head"])
    architecture = Architecture.of(CheckpointFolder.open(tmp_path))
    plain = Altered()
    original = fingerprint(architecture, plain)
    assert fingerprint(architecture, Altered()) == original
    encoder = {name for name in plain.names if not name.startswith("language.")}
    changed = {name for name in plain.names if fingerprint(architecture, Altered(name)) != original}
    assert changed == encoder
    assert len(encoder) > 30


def test_names_dtypes_and_shapes_count_and_the_order_does_not():
    def of(*tensors: tuple[str, Tensor]) -> bytes:
        found = Fingerprint(("a.",))
        for name, tensor in tensors:
            found(name, tensor)
        return found.digest()

    one, two = torch.zeros(2, 3), torch.ones(2, 3)
    whole = of(("a.one", one), ("a.two", two))
    assert of(("a.two", two), ("b.three", one), ("a.one", one)) == whole
    others = [
        of(("a.one", two), ("a.two", one)),
        of(("a.one", one)),
        of(("a.one", one), ("a.two", two.reshape(3, 2))),
        of(("a.one", one.int()), ("a.two", two)),
    ]
    assert len({whole, *others}) == 5


def test_every_number_of_the_config_that_rows_depend_on_counts(tmp_path):
    config = Architecture.of(CheckpointFolder.open(write_flash(tmp_path))).config
    vision = config.vision
    keys = [
        model_key(b"weights", config, torch.bfloat16, "cpu"),
        model_key(b"others", config, torch.bfloat16, "cpu"),
        model_key(b"weights", config, torch.float16, "cpu"),
        model_key(b"weights", config, torch.bfloat16, "other"),
        model_key(b"weights", replace(config, shuffle_version="v1"), torch.bfloat16, "cpu"),
        model_key(b"weights", replace(config, shuffle_block=1), torch.bfloat16, "cpu"),
        model_key(b"weights", replace(config, tile_size=28), torch.bfloat16, "cpu"),
        model_key(b"weights", replace(config, flash=None), torch.bfloat16, "cpu"),
        model_key(b"weights", replace(config, vision=replace(vision, num_heads=8)), torch.bfloat16, "cpu"),
        model_key(b"weights", replace(config, vision=replace(vision, norm_eps=1e-5)), torch.bfloat16, "cpu"),
    ]
    assert len(set(keys)) == len(keys)
    # The decoder reads rows; the rule chooses among them.
    decoder = replace(config, decoder=replace(config.decoder, num_layers=9))
    rule = replace(config, flash=replace(config.flash, absolute_threshold=0.1))
    assert {model_key(b"weights", same, torch.bfloat16, "cpu") for same in (decoder, rule)} == {keys[0]}
