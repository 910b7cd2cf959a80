"""What is said where there is no GPU, and which platform is taken then."""

from __future__ import annotations

import pytest
import torch

from tilewise import LLM
from tilewise.errors import InvalidConfig
from tilewise.platforms import current_platform
from tilewise.platforms.cuda import CudaPlatform, cuda_missing

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_auto_is_the_processor() -> None:
    assert current_platform().name == current_platform("cpu").name == "cpu"


def test_a_gpu_that_is_not_there_is_refused_with_the_reason_and_a_remedy() -> None:
    missing = cuda_missing()
    assert missing is not None
    assert ("built without CUDA" in missing) == (torch.version.cuda is None)
    said = r"device=cuda is not possible: .*(install torch for CUDA|nvidia-smi).*, or use device=cpu"
    for asked in (lambda: current_platform("cuda"), CudaPlatform, lambda: LLM("demo", device="cuda")):
        with pytest.raises(InvalidConfig, match=said):
            asked()
