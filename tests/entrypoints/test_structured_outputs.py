"""Structured outputs through the public API, with the demo model and tiny random ones."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from tests.inputs.walks import SCHEMAS
from tests.tiny import SPECS, write_hf
from tilewise import LLM, ImageAsset, SamplingParams, StructuredOutputsParams
from tilewise.errors import InvalidRequest

SIGN = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "octagon", "八边形"]},
        "text": {"type": "string", "maxLength": 12},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01},
    },
    "required": ["shape", "text", "confidence"],
    "additionalProperties": False,
}
QUESTION = {
    "role": "user",
    "content": [
        {"type": "image_pil", "image_pil": ImageAsset("stop_sign").pil_image},
        {"type": "text", "text": "Which sign is this?"},
    ],
}


@pytest.fixture(scope="module")
def llm():
    with LLM("demo") as found:
        yield found


def params(seed: int = 0, **form) -> SamplingParams:
    return SamplingParams(
        temperature=seed % 3 / 2, seed=seed, max_tokens=200, structured_outputs=StructuredOutputsParams(**form)
    )


def test_the_demo_model_answers_in_json(llm):
    outputs = llm.chat([[QUESTION]] * 30, [params(seed, json=SIGN) for seed in range(30)], use_tqdm=False)
    for output in outputs:
        assert output.outputs[0].finish_reason == "stop"
        jsonschema.validate(json.loads(output.outputs[0].text), SIGN)


def test_forms_and_free_answers_side_by_side(llm):
    forms = [
        params(1, json=json.dumps(SIGN), disable_any_whitespace=True),
        params(2, regex="(STOP|停){1,3}!"),
        params(3, choice=["停车标志", "停车标志。", "yield"]),
        params(4, grammar='root ::= "a" root "b" | "ab"'),
        SamplingParams(temperature=0, max_tokens=12),
    ]
    together = [output.outputs[0] for output in llm.chat([[QUESTION]] * 5, forms, use_tqdm=False)]
    alone = [llm.chat([QUESTION], form)[0].outputs[0] for form in forms]
    assert [output.text for output in together] == [output.text for output in alone]
    compact, repeated, chosen, nested, _ = (output.text for output in together)
    number = compact.rpartition(":")[2].rstrip("}")  # a form may end with zeros, which Python would not write
    values = {**json.loads(compact), "confidence": None}
    assert compact.replace(number, "null") == json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    assert re.fullmatch("(STOP|停){1,3}!", repeated)
    assert chosen in ("停车标志", "停车标志。", "yield")
    assert together[3].finish_reason == "length" or re.fullmatch("a+b+", nested)


def test_several_answers_to_one_question(llm):
    form = StructuredOutputsParams(json=SIGN)
    sampling = SamplingParams(n=4, temperature=1.5, seed=9, max_tokens=200, structured_outputs=form)
    texts = [output.text for output in llm.chat([QUESTION], sampling)[0].outputs]
    for text in texts:
        jsonschema.validate(json.loads(text), SIGN)
    assert len(set(texts)) > 1


def test_a_stream_grows_into_the_whole_answer(llm):
    pieces = list(llm.stream_chat([QUESTION], params(5, json=SIGN)))
    jsonschema.validate(json.loads("".join(text for text, _ in pieces)), SIGN)


def test_scores_are_those_of_allowed_tokens(llm):
    sampling = params(0, choice=["yes", "no"]).with_(logprobs=5)
    output = llm.chat([QUESTION], sampling)[0].outputs[0]
    assert all(score.logprob > float("-inf") for scores in output.logprobs for score in scores.values())


@pytest.mark.parametrize("name", ["internlm2-300m", "llama-6b"])
def test_other_decoders(tmp_path, name):
    with LLM(str(write_hf(tmp_path, SPECS[name])), dtype="float32", max_model_len=256) as llm:
        for schema in SCHEMAS.values():
            outputs = llm.generate(
                ["the hen"] * 4,
                [params(seed, json=schema, disable_any_whitespace=True) for seed in range(4)],
                use_tqdm=False,
            )
            for output in outputs:
                jsonschema.validate(json.loads(output.outputs[0].text), schema)


def test_a_bad_schema_costs_its_own_request_alone(llm):
    for form in ({"json": "{"}, {"regex": "("}, {"json": {"type": "wat"}}, {"grammar": "start: nothing"}):
        with pytest.raises(InvalidRequest, match="structured_outputs"):
            llm.chat([QUESTION], params(0, **form))
    assert not llm._core.has_unfinished
    assert llm.chat([QUESTION], params(0, choice=["yes"]))[0].outputs[0].text == "yes"


def test_a_form_holds_behind_the_thinking(tmp_path):
    """As in vLLM with a reasoning parser: free text up to `</think>`, which these scores make come soon, then JSON."""
    spec = SPECS["qwen3-300m-head"]
    sign = {"type": "object", "properties": {"shape": {"enum": ["circle", "octagon"]}}, "required": ["shape"]}
    with LLM(str(write_hf(tmp_path, spec)), dtype="float32", max_model_len=1024) as llm:
        closing = llm.get_tokenizer().encode("</think>")
        hurry = {closing[-1]: 4.0}
        sampling = [params(seed, json=sign).with_(logit_bias=hurry, temperature=1.0) for seed in range(6)]
        asked = [[{"role": "user", "content": "Hi"}]] * len(sampling)
        outputs = llm.chat(asked, sampling, chat_template_kwargs={"enable_thinking": True}, use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    for text in texts:
        thinking, _, form = text.partition("</think>")
        assert thinking.startswith("<think>")
        jsonschema.validate(json.loads(form), sign)
    assert any(not text.startswith("<think></think>") for text in texts)


def test_a_begun_answer_of_a_form_does_not_think(tmp_path):
    with LLM(str(write_hf(tmp_path, SPECS["qwen3-300m-head"])), dtype="float32", max_model_len=1024) as llm:
        begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Say "}]
        (output,) = llm.chat(
            begun, params(0, choice=["yes"]), add_generation_prompt=False, continue_final_message=True,
            chat_template_kwargs={"enable_thinking": True}, use_tqdm=False,
        )  # fmt: skip
    assert output.outputs[0].text == "yes"
