"""Beam search against one that is written out over transformers' logits, with whole sequences and no cache."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.driving import normalised
from tests.tiny import END_IDS, SPECS, reference_model, write_hf
from tilewise import LLM, BeamSearchParams
from tilewise.errors import InvalidRequest, UnknownOption

NAME = "qwen3-300m-head"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("model"), SPECS[NAME])


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), dtype="float32", max_model_len=128)


@pytest.fixture(scope="module")
def theirs(folder):
    return reference_model(folder)


@dataclass(frozen=True)
class Found:
    tokens: tuple[int, ...]
    total: float
    ended: bool = False


def written_out(model, prompt, pixels, width, steps, ends, penalty=1.0) -> list[Found]:
    """Every beam continued by each of its 2 * width likeliest tokens; the best of those that have not ended go on."""

    def score(beam: Found) -> float:
        length = len(prompt) + len(beam.tokens) - (beam.tokens[-1] in ends)
        return beam.total / length**penalty

    beams, complete = [Found((), 0.0)], []
    for _ in range(steps):
        batch = torch.tensor([[*prompt, *beam.tokens] for beam in beams])
        images = {} if pixels is None else {"pixel_values": pixels.repeat(len(beams), 1, 1, 1)}
        with torch.inference_mode():
            scores = model(input_ids=batch, **images).logits[:, -1].double().log_softmax(-1)
        grown = [
            Found((*beam.tokens, token), beam.total + value, token in ends)
            for beam, row in zip(beams, scores.tolist(), strict=True)
            for value, token in sorted(((value, token) for token, value in enumerate(row)), reverse=True)[: 2 * width]
        ]
        complete += [beam for beam in grown if beam.ended]
        beams = sorted((beam for beam in grown if not beam.ended), key=score, reverse=True)[:width]
    return sorted([*complete, *beams], key=score, reverse=True)[:width]


def assert_same(output, expected: list[Found]) -> None:
    prompt = output.sequences[0].orig_prompt.prompt_ids
    assert [tuple(beam.tokens) for beam in output.sequences] == [(*prompt, *beam.tokens) for beam in expected]
    assert [beam.cum_logprob for beam in output.sequences] == pytest.approx([b.total for b in expected], abs=1e-4)
    assert [beam.finish_reason == "stop" for beam in output.sequences] == [beam.ended for beam in expected]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_beams_of_a_text_are_those_of_the_definition(llm, theirs, width):
    prompts = ["the hen in an inner town", "another"]
    outputs = llm.beam_search(prompts, BeamSearchParams(beam_width=width, max_tokens=6))
    for output in outputs:
        prompt = output.sequences[0].orig_prompt.prompt_ids
        assert_same(output, written_out(theirs, prompt, None, width, 6, END_IDS))
        assert len(output.sequences) == width
        for beam in output.sequences:
            answer = beam.tokens[len(prompt) :]
            chosen = [scores[token].logprob for scores, token in zip(beam.logprobs, answer, strict=True)]
            assert beam.cum_logprob == pytest.approx(sum(chosen))


def test_beams_of_a_picture_are_those_of_the_definition(llm, theirs):
    picture = Image.effect_noise((112, 56), 80).convert("RGB")
    prompt = {"prompt": "<image>\nthe hen", "multi_modal_data": {"image": picture}}
    (output,) = llm.beam_search([prompt], BeamSearchParams(beam_width=3, max_tokens=5))
    request = output.sequences[0].orig_prompt
    pixels = normalised(torch.from_numpy(np.stack([tile.pixels for tile in request.images[0].tiles])))
    assert len(pixels) == 3
    assert_same(output, written_out(theirs, request.prompt_ids, pixels, 3, 5, END_IDS))


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0])
def test_a_beam_that_ends_competes_with_longer_ones(llm, folder, theirs, tmp_path, penalty):
    """Tokens that the free search takes become end tokens of the model."""
    ignoring = BeamSearchParams(beam_width=4, max_tokens=5, length_penalty=0.0, ignore_eos=True)
    free = llm.beam_search("the hen", ignoring)[0].sequences
    length = len(free[0].orig_prompt.prompt_ids)
    ends = {free[0].tokens[length + 2], free[1].tokens[length + 3]}
    shutil.copytree(folder, tmp_path / "ends")
    (tmp_path / "ends" / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(ends)}))
    with LLM(str(tmp_path / "ends"), dtype="float32", max_model_len=128) as other:
        params = BeamSearchParams(beam_width=4, max_tokens=5, length_penalty=penalty)
        output = other.beam_search("the hen", params)[0]
        every_end = ends | other._prepare.spec.end_ids
        prompt = output.sequences[0].orig_prompt.prompt_ids
        assert_same(output, written_out(theirs, prompt, None, 4, 5, every_end, penalty))
        ended = [beam for beam in output.sequences if beam.finish_reason == "stop"]
        assert ended
        decode = other.get_tokenizer().decode
        assert ended[0].text == decode(ended[0].tokens[:-1], skip_special_tokens=False)
        params = BeamSearchParams(beam_width=4, max_tokens=5, length_penalty=penalty, include_stop_str_in_output=True)
        again = [beam for beam in other.beam_search("the hen", params)[0].sequences if beam.finish_reason == "stop"]
        assert again[0].text == decode(ended[0].tokens, skip_special_tokens=False)
        found = other.beam_search("the hen", ignoring)[0].sequences
        assert [beam.tokens for beam in found] == [beam.tokens for beam in free]


def test_a_wide_beam_of_two_steps_finds_the_likeliest_pair(llm, theirs):
    """Width 64 at two tokens keeps every first token that can matter: exhaustive search says the same."""
    (output,) = llm.beam_search("the hen", BeamSearchParams(beam_width=64, max_tokens=2, ignore_eos=True))
    prompt = list(output.sequences[0].orig_prompt.prompt_ids)
    with torch.inference_mode():
        first = theirs(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
        vocabulary = len(first)
        batch = torch.tensor([[*prompt, token] for token in range(vocabulary)])
        second = theirs(input_ids=batch).logits[:, -1].double().log_softmax(-1)
    both = (first[:, None] + second).flatten()
    best = int(both.argmax())
    assert output.sequences[0].tokens[-2:] == [best // vocabulary, best % vocabulary]
    assert output.sequences[0].cum_logprob == pytest.approx(float(both[best]), abs=1e-4)


def test_a_full_context_ends_the_search(llm):
    (output,) = llm.beam_search([[30] * 125], BeamSearchParams(beam_width=2, max_tokens=50, ignore_eos=True))
    assert [(len(beam.tokens), beam.finish_reason) for beam in output.sequences] == [(128, "length")] * 2


def test_most_of_each_step_is_cached(llm, monkeypatch):
    asked, run = [], llm._loop.run

    def noting(requests, show_progress):
        outputs = run(requests, show_progress)
        asked.extend(outputs)
        return outputs

    monkeypatch.setattr(llm._loop, "run", noting)
    llm.beam_search([list(range(30, 94))], BeamSearchParams(beam_width=3, max_tokens=4))
    assert [found.num_cached_tokens for found in asked[1:]] == [64] * 9


def test_temperature_adds_a_drawn_token_and_changes_no_score(llm):
    cold = llm.beam_search("the hen", BeamSearchParams(beam_width=2, max_tokens=1, ignore_eos=True))[0].sequences
    hot = llm.beam_search("the hen", BeamSearchParams(beam_width=2, max_tokens=1, ignore_eos=True, temperature=2.0))
    assert [(beam.tokens, beam.cum_logprob) for beam in hot[0].sequences] == [
        (beam.tokens, beam.cum_logprob) for beam in cold
    ]
    assert len(cold[0].logprobs[0]) == 4
    assert len(hot[0].sequences[0].logprobs[0]) in (4, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width must be a whole number from 1 to 64, got 0"),
        ({"beam_width": 65}, "beam_width must be a whole number from 1 to 64, got 65"),
        ({"beam_width": 2.0}, "beam_width must be a whole number"),
        ({"max_tokens": 0}, "max_tokens must be a whole number >= 1, got 0"),
        ({"max_tokens": None}, "max_tokens must be a whole number >= 1, got None"),
        ({"temperature": -1}, "temperature must be a number >= 0"),
        ({"length_penalty": math.inf}, r"length_penalty must be in \[-10, 10\], got inf"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InvalidRequest, match=message):
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 5, **options})


def test_an_unknown_option_offers_the_nearest():
    with pytest.raises(UnknownOption, match="no option 'beam_size'"):
        BeamSearchParams(beam_size=2, max_tokens=5)
