"""`check_numerics`: real weights that are not finite end the requests that meet them, and nobody else notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny import SPECS, TWINS, write_original
from tests.weights.broken import change_tensors
from tilewise.entrypoints.llm import LLM
from tilewise.errors import NotFinite
from tilewise.sampling_params import SamplingParams
from tilewise.types import RequestOutput

POISON, HEALTHY = 77, 78
OPTIONS = {"dtype": "float32", "max_model_len": 256, "check_numerics": True, "use_tqdm_on_load": False}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3}
MODES: dict[str, dict[str, Any]] = {
    "graphs": {},
    "op by op": {"enforce_eager": True},
    "overlapped": {"async_scheduling": True},
    "batch-invariant": {"batch_invariant": True},
    "guessing": {"speculative_config": NGRAM},
    "int8 cache": {"kv_cache_dtype": "int8"},
    "int8 weights": {"quantization": "int8"},
    "bfloat16": {"dtype": "bfloat16"},
    "chunks": {"max_num_batched_tokens": 16, "max_num_seqs": 8},
    "blocks used again": {"num_gpu_blocks_override": 24, "enable_prefix_caching": False},
    "two ranks": {"tensor_parallel_size": 2},
    "two stages": {"pipeline_parallel_size": 2},
    "two replicas": {"data_parallel_size": 2},
}


def poison_embedding(tensors: dict[str, torch.Tensor]) -> None:
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[name][POISON, 3] = float("nan")


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_original(tmp_path_factory.mktemp("poisoned") / "model", SPECS["qwen2-300m"])
    change_tensors(folder, poison_embedding)
    return folder


def ids(length: int, seed: int) -> list[int]:
    return [100 + (seed * 37 + place * 11) % 90 for place in range(length)]


def ask(llm: LLM, prompts: list[list[int]], *most: int) -> list[RequestOutput]:
    sampling = [SamplingParams(temperature=0, max_tokens=tokens, logprobs=3, ignore_eos=True) for tokens in most]
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling)


def said(output: RequestOutput) -> tuple[list[int], list[list[float]]]:
    """Tokens and all their log-probabilities, bit by bit."""
    answer = output.outputs[0]
    assert answer.finish_reason == "length"
    return answer.token_ids, [[score.logprob for score in scores.values()] for scores in answer.logprobs or ()]


@pytest.mark.parametrize("mode", MODES)
def test_one_poisoned_prompt_ends_alone_and_the_others_are_what_they_were(poisoned: Path, mode: str) -> None:
    """A healthy token in its place, and an answer of one token, make steps of the same shapes."""
    bad, good = ids(37, 5), ids(37, 5)
    bad[20], good[20] = POISON, HEALTHY
    others = [ids(9, 1), ids(21, 2), ids(50, 3)]
    with LLM(str(poisoned), **{**OPTIONS, **MODES[mode]}) as llm:
        expected = ask(llm, [others[0], good, *others[1:]], 12, 1, 12, 12)
        assert llm.reset_prefix_cache(), "a cached prefix changes shapes, hence rounding"
        for _ in range(3):  # again, in blocks that held what was not finite
            found = ask(llm, [others[0], bad, *others[1:]], 12, 1, 12, 12)
            answer = found[1].outputs[0]
            assert (answer.finish_reason, answer.text, answer.token_ids) == ("error", "", [])
            assert isinstance(answer.error, NotFinite)
            assert answer.error.part == "decoder"
            assert "hidden states of tokens" in str(answer.error)
            assert "--dtype float32" in str(answer.error)
            same = [0, 2, 3]
            assert [said(found[number]) for number in same] == [said(expected[number]) for number in same]
            assert llm.reset_prefix_cache()
        assert llm.counters.not_finite_decoder == 3
        assert llm.counters.not_finite_tower == 0


def test_what_was_computed_before_a_token_that_fails_is_kept_and_its_own_block_is_not(poisoned: Path) -> None:
    prompt = ids(70, 9)
    prompt[40] = POISON
    with LLM(str(poisoned), **OPTIONS, max_num_batched_tokens=16, max_num_seqs=4) as llm:
        (failed,) = ask(llm, [prompt], 4)
        assert failed.outputs[0].finish_reason == "error"
        known = llm.counters.prefix_cache_hits
        (failed,) = ask(llm, [prompt], 4)
        assert failed.outputs[0].finish_reason == "error"
        assert llm.counters.prefix_cache_hits - known == 32


def test_a_draft_model_guesses_for_the_others(poisoned: Path) -> None:
    draft = {"model": str(poisoned), "num_speculative_tokens": 2}
    bad = [*ids(12, 4), POISON, *ids(5, 6)]
    with LLM(str(poisoned), **OPTIONS) as llm:
        expected = ask(llm, [ids(9, 1), ids(21, 2)], 12, 12)
    with LLM(str(poisoned), **OPTIONS, speculative_config=draft) as llm:
        found = ask(llm, [ids(9, 1), bad, ids(21, 2)], 12, 12, 12)
        assert [output.outputs[0].finish_reason for output in found] == ["length", "error", "length"]
        assert [found[0].outputs[0].token_ids, found[2].outputs[0].token_ids] == [
            output.outputs[0].token_ids for output in expected
        ]
        assert llm.counters.accepted_tokens > 0


def test_tokens_before_the_one_that_fails_are_given(poisoned: Path) -> None:
    """An answer that is made to say the poisoned token itself: the step behind it fails."""
    forced = SamplingParams(temperature=0, max_tokens=9, logit_bias={POISON: 100.0}, ignore_eos=True)
    for options in ({}, {"async_scheduling": True}, {"speculative_config": NGRAM}):
        with LLM(str(poisoned), **OPTIONS, **options) as llm:
            (output,) = llm.generate({"prompt_token_ids": ids(9, 1)}, forced)
            assert output.outputs[0].token_ids == [POISON]
            assert output.outputs[0].finish_reason == "error"
            assert "tokens 9 to 9" in str(output.outputs[0].error)


def test_without_it_nobody_ends(poisoned: Path) -> None:
    with LLM(str(poisoned), **{**OPTIONS, "check_numerics": False}) as llm:
        (output,) = ask(llm, [[*ids(5, 1), POISON]], 3)
        assert output.outputs[0].finish_reason == "length"
        assert llm.counters.not_finite_decoder == 0


def overflow(tensors: dict[str, torch.Tensor]) -> None:
    tensors["vision_model.embeddings.patch_embedding.weight"] *= 1e5


WHITE, MEAN = Image.new("RGB", (56, 56), "white"), Image.new("RGB", (56, 56), (124, 116, 104))
"""Normalised, the second one is zeros but for rounding: whatever weights multiply it, it stays small."""


def about(picture: Image.Image, *more: Image.Image) -> dict[str, Any]:
    pictures = [picture, *more]
    return {"prompt": "<image>\n" * len(pictures) + "the hen", "multi_modal_data": {"image": pictures}}


@pytest.mark.parametrize("mode", ["one process", "workers", "ranks", "stages", "batch-invariant", "flash"])
def test_a_picture_that_overflows_ends_its_requests_alone(tmp_path: Path, mode: str) -> None:
    twin = TWINS["InternVL3_5-8B-Flash"] if mode == "flash" else SPECS["qwen2-300m"]
    folder = write_original(tmp_path / "model", twin)
    change_tensors(folder, overflow)
    options: dict[str, Any] = {
        "workers": {"vision_workers": 1},
        "ranks": {"tensor_parallel_size": 2},
        "stages": {"pipeline_parallel_size": 2},
        "batch-invariant": {"batch_invariant": True},
    }.get(mode, {})
    kept = tmp_path / "tiles"
    sampling = SamplingParams(temperature=0, max_tokens=4, logprobs=1, ignore_eos=True)
    with LLM(str(folder), **{**OPTIONS, **options, "dtype": "float16", "encoder_cache_dir": str(kept)}) as llm:
        for _ in range(2):
            prompts = [about(MEAN), about(WHITE), about(MEAN, WHITE), {"prompt": "on"}]
            found = [output.outputs[0] for output in llm.generate(prompts, sampling)]
            assert [answer.finish_reason for answer in found] == ["length", "error", "error", "length"]
            errors = [answer.error for answer in found[1:3]]
            assert all(isinstance(error, NotFinite) and error.part == "tower" for error in errors)
            assert "tile 1 of 1 of picture 1" in str(errors[0])
            assert "tile 1 of 1 of picture 2" in str(errors[1])
            assert found[0].token_ids
        assert llm.counters.not_finite_tower == 4
        assert llm.counters.not_finite_decoder == 0
    assert len(list(kept.rglob("*.safetensors"))) == 1, "what is not finite is not kept on disk"


def break_expert(tensors: dict[str, torch.Tensor]) -> None:
    name = "language_model.model.layers.1.mlp.experts.2.down_proj.weight"
    tensors[name][:] = float("inf")


@pytest.mark.parametrize("invariant", [False, True])
def test_a_broken_expert_ends_those_that_it_is_chosen_for(tmp_path: Path, invariant: bool) -> None:
    folder = write_original(tmp_path / "model", SPECS["qwen3moe-300m-head"])
    prompts = [ids(1, seed) for seed in range(24)]
    options = {**OPTIONS, "batch_invariant": invariant}
    with LLM(str(folder), **options) as llm:
        expected = ask(llm, prompts, *[1] * len(prompts))
    change_tensors(folder, break_expert)
    with LLM(str(folder), **options) as llm:
        found = ask(llm, prompts, *[1] * len(prompts))
    going_on = [number for number, output in enumerate(found) if output.outputs[0].finish_reason == "length"]
    assert 0 < len(going_on) < len(prompts)
    assert [said(found[number]) for number in going_on] == [said(expected[number]) for number in going_on]
