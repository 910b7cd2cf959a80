"""Speculative decoding as users switch it on: options, refusals, and the same answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tiny import SPECS, TWINS, write_original
from tilewise import LLM, SamplingParams
from tilewise.errors import InvalidConfig
from tilewise.speculation import SpeculativeConfig

TINY = {"max_model_len": 256, "dtype": "float32"}
PROMPTS = ["the hen and the hen and the", "rain in the rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


def answers(folder, **options):
    params = [SamplingParams(temperature=0, max_tokens=24), SamplingParams(temperature=0.5, seed=4, max_tokens=24, n=2)]
    with LLM(str(folder), **TINY, **options) as llm:
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        return [[answer.token_ids for answer in output.outputs] for output in outputs], llm._core.counters


def test_answers_stay_the_same(folder):
    plain, _ = answers(folder)
    for config in ({"num_speculative_tokens": 4}, {"num_speculative_tokens": 3, "model": str(folder)}):
        found, counters = answers(folder, speculative_config=config)
        assert found == plain
        assert counters.accepted_tokens > 0


def test_what_is_logged(folder, caplog, monkeypatch):
    monkeypatch.setenv("VLLM_LOG_STATS_INTERVAL", "0")
    with caplog.at_level("INFO", "tilewise"):
        answers(folder, speculative_config={"num_speculative_tokens": 4}, disable_log_stats=False)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("speculation: up to 4 tokens are guessed at a time") for line in lines)
    assert any(line.startswith("SpecDecoding metrics: Mean acceptance length: ") for line in lines)


def test_a_stop_string_in_the_middle_of_right_guesses(folder):
    """Several tokens come at once; what is behind the stop string belongs to nobody."""
    params = SamplingParams(temperature=0, max_tokens=24)
    with LLM(str(folder), **TINY) as llm:
        text = llm.generate(PROMPTS[0], params)[0].outputs[0].text
        stop = text[len(text) // 2 :][:3]
        expected = llm.generate(PROMPTS[0], params.with_(stop=stop))[0].outputs[0]
    assert expected.stop_reason == stop
    with LLM(str(folder), **TINY, speculative_config={"model": str(folder), "num_speculative_tokens": 5}) as llm:
        found = llm.generate(PROMPTS[0], params.with_(stop=stop))[0].outputs[0]
    assert (found.text, found.token_ids, found.stop_reason) == (expected.text, expected.token_ids, stop)


@pytest.mark.parametrize(
    ("options", "lookup", "method"),
    [
        ({}, (2, 5), "ngram"),
        ({"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 3}, (3, 4), "ngram"),
        ({"model": "[ngram]", "prompt_lookup_max": 1}, (1, 1), "ngram"),
        ({"prompt_lookup_min": 9}, (9, 9), "ngram"),
        ({"model": "owner/small"}, (2, 5), "draft_model"),
    ],
)
def test_what_is_meant(options, lookup, method):
    found = SpeculativeConfig.of({"num_speculative_tokens": 5, **options})
    assert (found.lookup, found.method) == (lookup, method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs num_speculative_tokens"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens must be a whole number from 1 to 64, got 0"),
        ({"num_speculative_tokens": True}, "got True"),
        ({"num_speculative_token": 3}, "Did you mean num_speculative_tokens?"),
        ({"num_speculative_tokens": 3, "method": "ngrams"}, "Did you mean ngram?"),
        ({"num_speculative_tokens": 3, "method": "draft_model"}, "needs a model"),
        ({"num_speculative_tokens": 3, "model": 5}, "speculative_config: model must be a text, got 5"),
        ({"num_speculative_tokens": 3, "method": "ngram", "model": "a/b"}, "model has no use with method ngram"),
        ({"num_speculative_tokens": 3, "model": "a/b", "prompt_lookup_max": 3}, "prompt_lookup_max has no use"),
        ({"num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 3}, "=3 is above"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, message):
    with pytest.raises((InvalidConfig, TypeError), match=message.replace("?", r"\?")):
        LLM("demo", speculative_config=options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPECS["qwen2-300m"], vocab=300), "rows of the vocabulary is 300"),
        (replace(SPECS["qwen2-300m"], tile_size=28), "tile size is 28"),
        (TWINS["InternVL2-4B"], "has other tokens than"),
    ],
)
def test_a_model_that_cannot_draft_is_refused(folder, tmp_path, spec, message):
    draft = write_original(tmp_path, spec)
    with pytest.raises(InvalidConfig, match=message):
        LLM(str(folder), **TINY, speculative_config={"model": str(draft), "num_speculative_tokens": 2})
