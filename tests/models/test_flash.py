"""Flash models against the formulas of the released code: scores, rows, choices, shortened prompts, answers."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.conftest import ParityTable
from tests.models.driving import TEXT_IDS, load, random_tiles
from tests.models.flash import FEW, FLASH, NAME, SPEC, THRESHOLDS, Reference, write_flash
from tests.tiny import TWINS, write_original
from tilewise import LLM, SamplingParams
from tilewise.engine.tiles import easy_tiles
from tilewise.errors import InvalidCheckpoint
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops, TorchOps
from tilewise.step import FlashRule
from tilewise.weights.folder import CheckpointFolder

GREEDY = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, logprobs=5)
both_ops = pytest.mark.parametrize("ops", [TorchOps(), Ops()], ids=lambda ops: type(ops).__name__)


@pytest.fixture(scope="module")
def reference_of(tmp_path_factory):
    return cache(lambda name: Reference(tmp_path_factory.mktemp(name), TWINS[name]))


@pytest.fixture
def folder(folder_of):
    return folder_of(NAME)


def llm_of(folder, **options):
    sizes = {"max_model_len": 256, "encoder_cache_gb": 0.001, "kv_cache_memory_bytes": 2**20}
    return LLM(str(folder), dtype="float32", **{**sizes, **options})


def question(tiles, spec=SPEC):
    """A prompt with pictures of one tile each, numbered; and the tiles [T, size, size, 3]."""
    pixels = random_tiles(spec, 12)[list(tiles)]
    ids = list(TEXT_IDS[:4])
    for number in range(len(pixels)):
        ids += [spec.image_id, TEXT_IDS[5 + number]]
    pictures = [Image.fromarray(np.asarray(tile)) for tile in pixels]
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}, pixels


@both_ops
@pytest.mark.parametrize("name", FLASH)
def test_scores_and_both_forms_of_rows(name, ops, folder_of, reference_of, parity: ParityTable):
    pixels, reference = random_tiles(TWINS[name], 12), reference_of(name)
    with torch.inference_mode():
        ours = load(folder_of(name), ops).encoder(pixels)
        features = reference.features(pixels)
        scores, few = reference.modules.scores(features), reference.modules.few_rows(features)
    assert float(scores.max() - scores.min()) > 0.02, "the weights make every tile alike"
    parity.check(name, type(ops).__name__, "router scores", ours.scores, scores)
    parity.check(name, type(ops).__name__, "few rows of a tile", ours.rows[:, TWINS[name].tokens_per_tile :], few)


@pytest.mark.parametrize("name", FLASH)
@pytest.mark.parametrize("tiles", [[0], [3, 1, 2], [7, 7, 8], range(12)], ids=str)
def test_answers_are_those_of_the_reference(name, tiles, folder_of, reference_of, parity: ParityTable):
    spec = TWINS[name]
    prompt, pixels = question(tiles, spec)
    with llm_of(folder_of(name)) as llm:
        output = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
    answer, usage = output.outputs[0], output.usage
    tokens, logits, length = reference_of(name).generate(output.prompt_token_ids, pixels, 32)
    parity.same_tokens(name, "TorchOps", "32 tokens, pictures", answer.token_ids, tokens)
    assert usage.prompt_tokens == length
    assert usage.prompt_tokens + usage.image_tokens_saved == len(output.prompt_token_ids)
    assert usage.image_tokens + usage.image_tokens_saved == len(pixels) * spec.tokens_per_tile
    expected = logits.log_softmax(-1)
    for position, row in enumerate(answer.logprobs):
        ids = torch.tensor(list(row))
        ours = torch.tensor([score.logprob for score in row.values()])
        parity.check(name, "TorchOps", "log-probabilities, pictures", ours, expected[position, ids])


def test_the_questions_above_save_rows(folder):
    """Guards them: some tiles take few rows, some all, and one tile alone is never short."""
    with llm_of(folder) as llm:
        saved = [llm.generate(question(tiles)[0], GREEDY)[0].usage.image_tokens_saved for tiles in ([0], range(12))]
    assert saved[0] == 0
    assert 0 < saved[1] < 12 * (SPEC.tokens_per_tile - FEW)


def test_a_request_is_answered_alike_alone_together_and_again(folder):
    prompts = [question(tiles)[0] for tiles in ([0, 1, 2], [2, 3], [0, 5, 6, 7, 8], [1, 2, 0])]
    prompts.append({"prompt_token_ids": list(TEXT_IDS)})
    alone = []
    for prompt in prompts:
        with llm_of(folder) as llm:
            alone += llm.generate(prompt, GREEDY)
    few_pages = llm_of(folder, encoder_cache_gb=4 * 5 * SPEC.hidden * 4 / 2**30, max_num_batched_tokens=64)
    assert few_pages.resolved.limits.tile_pages == 4
    with llm_of(folder) as roomy, few_pages:
        for llm in (roomy, few_pages, roomy):
            together = llm.generate(prompts, GREEDY, use_tqdm=False)
            assert [output.outputs[0].token_ids for output in together] == [o.outputs[0].token_ids for o in alone]
            used = [dataclasses.replace(output.usage, cached_tokens=0) for output in together]
            assert used == [output.usage for output in alone]


def test_without_its_router_a_flash_model_is_an_ordinary_one(folder, tmp_path):
    prompt, _ = question([0, 1, 2])
    with (
        llm_of(folder, flash_router=False) as llm,
        llm_of(write_original(tmp_path, dataclasses.replace(SPEC, flash=False))) as plain,
    ):
        ours, theirs = (model.generate(prompt, GREEDY)[0] for model in (llm, plain))
    assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    assert ours.usage == theirs.usage


def test_flash_mode_false_means_the_same(tmp_path):
    """The released code builds the modules in any case and asks the config whether to use them."""
    with llm_of(write_flash(tmp_path, flash_mode=False)) as llm:
        assert llm.generate(question([0, 1, 2])[0], GREEDY)[0].usage.image_tokens_saved == 0


@pytest.mark.parametrize("key", THRESHOLDS)
def test_thresholds_are_demanded(tmp_path, key):
    for value in (None, "0.5", 1.5, -0.1, True, float("nan")):
        folder = write_flash(tmp_path, **{key: value})
        with pytest.raises(InvalidCheckpoint, match=rf"config\.json: with flash_mode {key} .*from 0 to 1, found"):
            llm_of(folder)
    llm_of(folder, flash_router=False).close()


@pytest.mark.parametrize("spec", [{"vision_hidden": 40, "vision_heads": 4}, {"tile_size": 28}])
def test_a_tower_that_no_router_fits(tmp_path, spec):
    folder = write_original(tmp_path, dataclasses.replace(SPEC, **spec))
    with pytest.raises(InvalidCheckpoint, match="flash_mode needs"):
        Architecture.of(CheckpointFolder.open(folder))


@pytest.mark.parametrize("name", ["mlp2.4.weight", "pooling_before_gating.query_token", "gating.gate.1.bias"])
def test_a_missing_module_is_named(tmp_path, name):
    from safetensors.torch import load_file, save_file

    weights = write_flash(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    del tensors[name]
    save_file(tensors, weights)
    with pytest.raises(InvalidCheckpoint, match=f"no tensor {name}"):
        llm_of(tmp_path)


@pytest.mark.parametrize("absolute", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [*range(1, 15), 41, 101])
def test_the_choice_is_that_of_torchs_quantile(absolute, count):
    scores = torch.rand(count, generator=torch.Generator().manual_seed(count))
    scores[: count // 3] = scores[-1]  # ties
    for hundredth in range(101):
        relative = hundredth / 100
        expected = (scores > scores.quantile(relative)) & (scores >= absolute)
        assert easy_tiles(scores.tolist(), FlashRule(1, relative, absolute)) == expected.tolist()
