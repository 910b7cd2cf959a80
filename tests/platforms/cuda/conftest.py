"""Kernels run on a GPU where there is one, else in Triton's interpreter, which computes with numpy.

Triton decides which when a kernel is defined, so that the choice has to stand here, before any import of kernels.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton")

from tests.platforms.cuda import interpreter

if not torch.cuda.is_available():
    interpreter.repair()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
