"""compressed-tensors itself reads what is written, and makes the same numbers of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.clients import environments
from tests.quantize.reading import compressed_tensors
from tests.tiny import SPECS, write_original
from tilewise.quantize import QuantizeOptions
from tilewise.quantize.run import quantize

pytestmark = pytest.mark.clients
PROGRAM = Path(__file__).parent / "programs" / "with_compressed_tensors.py"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen2-300m", {"scheme": "w8a8", "vision": True}),
        ("internlm2-300m", {"scheme": "w8a8-static", "vision": True}),
        ("qwen3moe-300m-head", {"scheme": "w8a8-static"}),
        ("phi3-300m", {"scheme": "w8a16"}),
        ("qwen2-300m", {"scheme": "w4a16", "vision": True}),
        ("qwen2-300m", {"scheme": "w4a16", "asymmetric": True, "error_feedback": False}),
        ("qwen2-300m", {"scheme": "fp8"}),
    ],
)
def test_the_library_reads_what_is_written(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    if (why := environments.failure("compressed_tensors")) is not None:
        pytest.fail(f"compressed_tensors is not installed: {why}", pytrace=False)
    source, out = write_original(tmp_path / "source", SPECS[name]), tmp_path / "out"
    quantize(QuantizeOptions(model=str(source), out=str(out), **options), show=False)
    command = [environments.python("compressed_tensors"), PROGRAM, out, tmp_path / "floats.safetensors"]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert ended.returncode == 0, ended.stderr
    theirs, expected = load_file(tmp_path / "floats.safetensors"), compressed_tensors(out)
    assert set(theirs) == set(expected)
    for module, matrix in expected.items():
        np.testing.assert_allclose(theirs[module].double().numpy(), matrix, rtol=1e-6, atol=0)
