"""Two ranks over an NPU's ops, gloo in HCCL's place; and the files of ModelSlim, multiplied in int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.parallel.ranked import Twins, computed, rank
from tests.parallel.test_logits import SHAPES
from tests.platforms.ascend.device import interface, lenient_ops, strict_ops
from tests.tiny import SPECS, TinySpec, write_original
from tests.weights.quantization.test_modelslim import MOE, SPEC, as_published, write_pair
from tilewise.layout import Layout
from tilewise.models.load import Architecture
from tilewise.parallel.mesh import Mesh
from tilewise.platforms.ops import Ops
from tilewise.weights.folder import CheckpointFolder

LAYOUTS = (Layout(2), Layout(2, experts="linear"), Layout(2, spread_rows=2))


def test_two_ranks_give_the_logits_of_one(tmp_path: Path) -> None:
    """Heads and columns shared out, experts whole on either rank, and rows spread between products."""
    twins: Twins = {}
    for name in ("qwen2-300m", "qwen3moe-300m-head"):
        spec = replace(SPECS[name], **SHAPES, vision_heads=4)
        twins[name] = write_original(tmp_path / name, spec), spec
    mp.spawn(rank, ([(layout, twins) for layout in LAYOUTS], tmp_path, lenient_ops), nprocs=2)
    for name, (folder, spec) in twins.items():
        logits, tiles, _ = computed(folder, spec, Mesh())
        for turn in range(len(LAYOUTS)):
            for number in range(2):
                found = torch.load(tmp_path / f"{turn}-{number}.pt")[name]
                torch.testing.assert_close(found[0], logits, atol=2e-4, rtol=2e-4)
                torch.testing.assert_close(found[1], tiles, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("spec", [SPEC, MOE], ids=["dense", "experts"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_checkpoint_of_modelslim(tmp_path: Path, spec: TinySpec, dtype: torch.dtype) -> None:
    """Calibrated rows in tower and decoder, rows as they come in experts and down projections, as it is published."""
    stored, _ = write_pair(tmp_path, as_published, spec=spec)
    found = []
    for ops in (strict_ops(), Ops()):
        model = Architecture.of(CheckpointFolder.open(stored)).load(dtype, ops, 256)
        with torch.inference_mode():
            found.append(all_logits(model, prompt_of(spec, (1,)), random_tiles(spec, 1), spec.image_id).float())
    near = torch.nn.functional.cosine_similarity(*found, dim=1)  # for some tokens, another expert may be taken
    assert near.median() > 0.995
    assert {"npu_quantize", "npu_quant_matmul", "npu_dynamic_quant"} <= set(interface().calls)
