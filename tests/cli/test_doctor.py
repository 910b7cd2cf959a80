"""`tilewise doctor` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tilewise.platforms.ops import OPS

BESIDE = ("quantised_rope_into_cache", "quantised_paged_attention", "store_levels", "store_grouped")
"""Kernels for a KV cache of 8 bits and for quantised checkpoints."""


def doctor(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "tilewise", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout


def test_every_op_has_a_row_and_a_reason():
    facts, _, choices = doctor().partition("\n\n")
    assert [line.split()[0] for line in choices.splitlines()] == ["OP", *OPS, *BESIDE, "resize"]
    assert all(len(line.split(maxsplit=2)) == 3 for line in choices.splitlines())
    assert facts.startswith("CPU ")


def test_without_a_compiler_it_says_what_would_help(tmp_path: Path):
    found = json.loads(doctor("--json", PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path)))
    reasons = {choice["op"]: choice["why"] for choice in found["choices"]}
    paths = {choice["op"]: choice["path"] for choice in found["choices"]}
    assert paths == dict.fromkeys((*OPS, *BESIDE), "torch") | {"resize": "Pillow"}
    assert "install g++" in reasons["rms_norm"] or "AVX2" in reasons["rms_norm"]
    assert reasons["rms_norm"] in found["facts"]["kernels"]
