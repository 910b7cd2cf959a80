"""The engine on an NVIDIA GPU, against the same engine on this machine's CPU (make test-cuda)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tilewise
from tests.equal.driver import few_requests
from tests.tiny import SPECS, write_original
from tilewise import LLM, SamplingParams
from tilewise.platforms import current_platform
from tilewise.platforms.transfers import Streams

pytestmark = pytest.mark.cuda

GREEDY = SamplingParams(temperature=0, max_tokens=24, logprobs=1)
PICTURE = min((Path(tilewise.__file__).parent / "demo" / "pictures").glob("*.png"))
TEXTS = ["the hen", "1 2 3 1 2 3", "A circle is"]
OPTIONS: dict[str, Any] = {"max_model_len": 512, "dtype": "float32"}
WAYS: dict[str, dict[str, Any]] = {
    "captured steps": {},
    "captured when they come": {"lazy_graphs": True},
    "op by op": {"enforce_eager": True},
    "one step after the other": {"async_scheduling": False},
    "cache of int8": {"kv_cache_dtype": "int8"},
    "small steps": {"max_num_batched_tokens": 16, "max_num_seqs": 4},
}


def answers(device: str, **options: Any) -> list[tuple[tuple[int, ...], float]]:
    """Tokens of each answer, and the sum of their log-probabilities."""
    with LLM("demo", device=device, **OPTIONS, **options) as llm:
        found = llm.generate(TEXTS, GREEDY, use_tqdm=False)
        picture = {"role": "user", "content": [{"type": "image_pil", "image_pil": Image.open(PICTURE)}]}
        found += llm.chat([picture], GREEDY, use_tqdm=False)
    return [(one.outputs[0].token_ids, one.outputs[0].cumulative_logprob) for one in found]


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_answers_are_those_of_the_cpu(options: dict[str, Any]) -> None:
    kept = {name: value for name, value in options.items() if name == "kv_cache_dtype"}
    for (tokens, score), (expected, known) in zip(answers("cuda", **options), answers("cpu", **kept), strict=True):
        assert tokens == expected
        assert score == pytest.approx(known, abs=1e-2)


@pytest.mark.parametrize("spec", ["qwen3moe-300m-head", "internlm2-300m"])
def test_other_backbones_answer_as_on_the_cpu(spec: str, tmp_path: Any) -> None:
    folder = write_original(tmp_path / spec, SPECS[spec])
    ids = [request.prompt_ids for request in few_requests() if not request.images]
    found = []
    for device in ("cuda", "cpu"):
        with LLM(str(folder), device=device, **OPTIONS) as llm:
            results = llm.generate([{"prompt_token_ids": list(one)} for one in ids], GREEDY, use_tqdm=False)
            found.append([one.outputs[0].token_ids for one in results])
    assert found[0] == found[1]


def test_the_platform_is_the_gpu() -> None:
    platform = current_platform()
    assert platform.name == "cuda"
    assert 0 < platform.free_memory() <= platform.total_memory()
    assert platform.diagnose().facts["GPU"] == torch.cuda.get_device_name()


def test_work_for_tiles_follows_the_steps_before_it() -> None:
    device = current_platform().device
    streams = Streams(device)
    with streams.steps():
        x = torch.zeros(1 << 24, device=device)
        for _ in range(200):
            x += 1
    with streams.tiles():
        streams.follow_steps()
        seen = x.clone()
    streams.tiles_done().synchronize()
    assert seen.min().item() == 200
