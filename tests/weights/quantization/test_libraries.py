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
from tilewise.platforms.forms import Int8
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.names import Source
from tilewise.weights.quantization.compressed_tensors import layouts
from tilewise.weights.sources import CheckpointSource

pytestmark = pytest.mark.clients
PROGRAM = Path(__file__).parent / "programs" / "with_compressed_tensors.py"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}


def compress(folder: Path, *arguments: str) -> tuple[Path, Path, list[str]]:
    """A twin that the library has compressed, the same in floats, and the names of its quantised layers."""
    if (why := environments.failure("compressed_tensors")) is not None:
        pytest.fail(f"compressed_tensors is not installed: {why}", pytrace=False)
    stored, floats = write_original(folder / "stored", SPEC), write_original(folder / "floats", SPEC)
    command = [environments.python("compressed_tensors"), PROGRAM, stored, floats, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert ended.returncode == 0, ended.stderr
    return stored, floats, json.loads(ended.stdout.splitlines()[-1])


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
    stored, floats, names = compress(tmp_path, scheme, *ignored)
    assert len(names) == (14 if ignored else 25)
    meant = SafetensorFiles(floats)
    source = CheckpointSource(
        SafetensorFiles(stored), Source, torch.float32, layouts=layouts(CheckpointFolder.open(stored))
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
