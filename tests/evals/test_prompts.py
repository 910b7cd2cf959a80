"""Prompts of lm_eval's requests: which tokens are scored, dialogues, a task's generation_kwargs."""

from __future__ import annotations

import pytest

from tilewise import SamplingParams
from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.evals.prompts import Dialogue, behind_messages, behind_reasoning, behind_text, sampling_of, windows
from tilewise.evals.question import ModelAnswer
from tilewise.inputs.pieces import Message
from tilewise.inputs.prepare import TemplateOptions

SCORE = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)


def test_windows_score_every_token_once_with_as_much_before_it_as_fits():
    """The example of lm_eval's documentation: ten tokens, four of input."""
    assert list(windows(tuple(range(10)), before=99, longest=5)) == [
        ((99, 0, 1, 2, 3), 4),
        ((3, 4, 5, 6, 7), 4),
        ((5, 6, 7, 8, 9), 2),
    ]
    assert list(windows((1, 2), before=99, longest=5)) == [((99, 1, 2), 2)]


@pytest.mark.parametrize("context", ["the", "the ", ""])
def test_a_score_is_that_of_each_token_behind_those_before_it(demo, context):
    ids, scored = behind_text(demo.inputs, context, " red circle")
    request = demo.inputs.prompt(ids, [], SCORE)
    ((_, output),) = demo.answer_each([request])
    answer = ModelAnswer.of(output, scored)
    every = SamplingParams(temperature=0, max_tokens=1, logprobs=-1)
    steps = [demo.generate([ids[:place]], every, use_tqdm=False)[0] for place in range(len(ids) - scored, len(ids))]
    chosen = [step.outputs[0].logprobs[0][token] for step, token in zip(steps, ids[-scored:], strict=True)]
    assert answer.logprob == pytest.approx(sum(entry.logprob for entry in chosen), abs=1e-4)
    assert answer.greedy is all(entry.rank == 1 for entry in chosen)


def test_blanks_between_context_and_continuation_are_scored(demo):
    inputs = demo.inputs
    ids, scored = behind_text(inputs, "the ", "red")
    assert ids == tuple(inputs.tokenizer.encode_raw("the red"))
    assert ids[:-scored] == tuple(inputs.tokenizer.encode_raw("the"))


def history(*turns):
    return [{"role": role, "content": text} for role, text in turns]


def test_a_dialogue_reads_as_the_prompt_and_keeps_text_as_text(demo):
    inputs = demo.inputs
    dialogue = Dialogue.of(history(("user", "<image>\nsay <|im_end|>")), inputs.spec.template, True, False)
    assert dialogue.endswith("<|im_start|>user\n<image>\nsay <|im_end|><|im_end|>\n<|im_start|>assistant\n")
    assert dialogue.messages == (Message("user", "<image>\nsay <|im_end|>", 1),)
    request = inputs.chat([Message("user", "say <|im_end|>")], [], SCORE)
    assert request.prompt_ids.count(inputs.tokenizer.special_id("<|im_end|>")) == 2  # of the system and the user's turn


def test_a_continuation_is_the_models_words(demo):
    template = demo.inputs.spec.template
    asked = Dialogue.of(history(("user", "what color?")), template, True, False)
    begun = Dialogue.of(history(("user", "what color?"), ("assistant", "It is")), template, False, False)
    said = asked.followed_by("red")
    assert said == (Message("user", "what color?"), Message("assistant", "red"))
    scored = behind_messages(demo.inputs, asked.followed_by(""), said)
    whole = demo.inputs.chat(said, [], SCORE, TemplateOptions(ending="continue")).prompt_ids
    opened = demo.inputs.chat(asked.messages, [], SCORE).prompt_ids
    assert whole[: len(whole) - scored] == opened
    assert demo.inputs.tokenizer.decode(whole[-scored:]) == "red"
    assert begun.followed_by(" red")[-1] == Message("assistant", "It is red")


def test_a_turn_that_is_no_text_is_refused(demo):
    with pytest.raises(InvalidRequest, match="must have a role and a text"):
        Dialogue.of([{"role": "user", "content": None}], demo.inputs.spec.template, True, False)


@pytest.mark.parametrize(
    ("words", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.2}, 0.2),
        ({"do_sample": True, "temperature": 0}, 0.0),
    ],
)
def test_greedy_unless_draws_are_asked_for(words, temperature):
    sampling = sampling_of(words, 256, 5)
    assert sampling.temperature == temperature
    assert sampling.seed == (5 if temperature else None)


def test_lengths_and_stops():
    sampling = sampling_of({"until": ["\n", ""], "max_gen_toks": 12, "top_p": 0.5}, 256, 5)
    assert (sampling.max_tokens, sampling.stop, sampling.top_p) == (12, ("\n",), 0.5)
    assert sampling_of({"until": "###"}, 256, 5).stop == ("###",)
    assert sampling_of({"until": []}, 256, 5).max_tokens == 256


def test_a_word_that_is_none_is_refused():
    with pytest.raises(UnknownOption, match="top_kk"):
        sampling_of({"top_kk": 3}, 256, 5)
    with pytest.raises(InvalidRequest, match="until must be"):
        sampling_of({"until": [1]}, 256, 5)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("<think>\nA or B?\n</think>\n\nB", "B"), ("<think>\nA or", ""), ("B", "B"), ("A or B?</think> B", "B")],
)
def test_reasoning_is_no_answer(text, answer):
    assert behind_reasoning(text) == answer
