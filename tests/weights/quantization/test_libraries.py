"""What other projects' libraries write: every form equals what the library makes of its own codes, bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.clients import environments
from tests.tiny import write_original
from tests.weights.broken import load
from tests.weights.quantization.test_compressed_tensors import logits
from tests.weights.quantization.written import SPEC
from tilewise.platforms.forms import Grouped, Int8
from tilewise.weights.checkpoint_source import CheckpointSource
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import TensorRef
from tilewise.weights.quantization import layouts_of

pytestmark = pytest.mark.clients
PROGRAMS = Path(__file__).parent / "programs"
LAYER = "language_model.model.layers.0.self_attn.q_proj"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}


def write_with(library: str, folder: Path, *arguments: object) -> tuple[Path, Path, str]:
    """A twin that the library has quantised, the same in floats, and what its program printed."""
    if (why := environments.failure(library)) is not None:
        pytest.fail(f"{library} is not installed: {why}", pytrace=False)
    stored, floats = write_original(folder / "stored", SPEC), write_original(folder / "floats", SPEC)
    command = [environments.python(library), PROGRAMS / f"with_{library}.py", stored, floats, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return stored, floats, ended.stdout


DECODER_ALONE = ("re:vision_model.*", "re:mlp1.*", "language_model.lm_head")
SCHEMES = (
    *("W2A16", "W3A16", "W4A16", "W5A16", "W6A16", "W7A16", "W8A16"),
    *("W4A16_ASYM", "W4A16_CHANNEL_ASYM", "W8A16_ASYM", "W4A8", "W4AFP8", "W8A8", "W8A8_STATIC_ASYM"),
    *("FP8", "FP8_DYNAMIC", "FP8_BLOCK"),
)


@pytest.mark.parametrize(
    ("scheme", "ignored"),
    [
        *((scheme, DECODER_ALONE) for scheme in SCHEMES),
        *((scheme, ()) for scheme in ("W8A8", "FP8_DYNAMIC", "W4A16_CHANNEL_ASYM")),
    ],
)
def test_compressed_tensors(tmp_path: Path, scheme: str, ignored: tuple[str, ...]) -> None:
    stored, floats, told = write_with("compressed_tensors", tmp_path, scheme, *ignored)
    names = json.loads(told.splitlines()[-1])
    assert len(names) == (14 if ignored else 25)
    meant = SafetensorFiles(floats)
    source = CheckpointSource(
        SafetensorFiles(stored), TensorRef, torch.float32, layouts=layouts_of(CheckpointFolder.open(stored))
    )
    forms = {name: source.linear(name, *meant.stored(f"{name}.weight").get_shape(), False).matrix for name in names}
    assert all(isinstance(form, Int8) == (scheme in ("W8A8", "W8A8_STATIC_ASYM")) for form in forms.values())
    for name, form in forms.items():
        expected = meant.tensor(f"{name}.weight")
        if scheme == "W8A8_STATIC_ASYM":  # whose scale of rows is multiplied in, and divided out again
            torch.testing.assert_close(form.dequantised(), expected, atol=0, rtol=1e-6)
        else:
            assert torch.equal(form.dequantised(), expected)
    load(stored)
    if not scheme.startswith("W8A8"):
        torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("packing", "bits", "symmetric"),
    [
        ("auto_awq", 4, False),
        ("auto_awq", 4, True),
        ("auto_gptq", 2, False),
        ("auto_gptq", 3, True),
        ("auto_gptq", 8, True),
        ("auto_round", 4, True),
    ],
)
def test_auto_round(tmp_path: Path, packing: str, bits: int, symmetric: bool) -> None:
    """Scales of its symmetric codes are negative where the largest number is positive."""
    stored, floats, _ = write_with("auto_round", tmp_path, packing, bits, symmetric)
    meant, packed = SafetensorFiles(floats), SafetensorFiles(stored)
    assert bool((packed.tensor(f"{LAYER}.scales") < 0).any()) == symmetric
    find = layouts_of(CheckpointFolder.open(stored))
    source = CheckpointSource(packed, TensorRef, torch.float32, layouts=find)
    for name in (LAYER, "language_model.model.layers.1.mlp.down_proj"):
        expected = meant.tensor(f"{name}.weight")
        form = source.linear(name, *expected.shape, False).matrix
        assert isinstance(form, Grouped)
        assert (form.shifts is None) == symmetric
        assert torch.equal(form.dequantised(), expected)
    torch.testing.assert_close(logits(stored), logits(floats), atol=1e-4, rtol=1e-4)
