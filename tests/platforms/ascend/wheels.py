"""Fetch what wheels of torch_npu say of its interface: `python -m tests.platforms.ascend.wheels`.

Schemas and meta kernels are text and Python in the wheels, which need neither a card nor CANN, and no machine of the
wheel's kind either. Nothing is installed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

VERSIONS = ("2.10.0", "2.11.0", "2.12.0", "2.13.0")
FOLDER = Path(__file__).parents[3] / "build" / "torch-npu"
_FILES = (
    "torch_npu/csrc/aten/npu_native_functions.yaml",
    "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml",
    "torch_npu/op_plugin/meta/_meta_registrations.py",
)


def fetch(version: str) -> None:
    with TemporaryDirectory() as folder:
        which = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *which]
        subprocess.run([*pip, "--dest", folder, f"torch-npu=={version}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as packed:
            packed.extractall(FOLDER / version, _FILES)


if __name__ == "__main__":
    for wanted in VERSIONS:
        if not (FOLDER / wanted).exists():
            fetch(wanted)
