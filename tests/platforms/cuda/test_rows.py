"""Row kernels against the reference ops."""

from __future__ import annotations

import pytest
import torch

from tilewise.platforms.cuda.kernels import rows
from tilewise.platforms.reference import ReferenceOps

REFERENCE = ReferenceOps()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}
"""Relative; of bfloat16 two of its last places."""
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@dtypes
@pytest.mark.parametrize("shape", [(1, 2), (3, 34), (2, 5, 2600), (0, 8)], ids=str)
def test_silu_mul(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(shape).to(device, dtype)
    torch.testing.assert_close(rows.silu_mul(x), REFERENCE.silu_mul(x), rtol=TOLERANCE[dtype], atol=1e-5)
