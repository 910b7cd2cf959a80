"""Text completions: prompts in all forms, whole answers and chunks."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from tests.server.asking import SERVED, USAGE, output, pieces, score
from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.sampling_params import SamplingParams
from tilewise.server.completions.answers import CompletionStream, completion_body
from tilewise.server.completions.call import completion_call
from tilewise.types import Request

SCORES = [{5: score(-0.5, 1, "虎"), 9: score(-2.0, 2, "b")}, {9: score(-0.1, 1, "b"), 6: score(-3.0, 7, "cd")}]
PROMPT_SCORES = [None, {2: score(-1.0, 1, "P")}, {3: score(-1.5, 2, "Q")}]


def decode(ids):
    return "".join(f"<{i}>" for i in ids)


def complete(prompt="p", **fields):
    return completion_call({"prompt": prompt, **fields}, SERVED, Ignored())


def choices(call, *outputs):
    return completion_body(call, outputs, decode)["choices"]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_forms_of_prompts(prompt, prompts):
    assert complete(prompt).prompts == prompts


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["a"] * 1025])
def test_prompts_that_are_none_or_too_many(prompt):
    with pytest.raises(InvalidField, match="prompt is "):
        complete(prompt)


def test_answers_of_all_prompts_are_counted():
    assert len(complete(["a"] * 512, n=2).prompts) == 512
    with pytest.raises(InvalidField, match="513 prompts with n=2 make 1026 answers, the most are 1024"):
        complete(["a"] * 513, n=2)


@pytest.mark.parametrize("prompt", [1, [1, "a"], [None], [[1.5]], {"a": 1}])
def test_prompts_of_the_wrong_type(prompt):
    with pytest.raises(ValidationError):
        complete(prompt)


def test_sampling():
    assert complete().sampling == SamplingParams(max_tokens=16)
    assert complete(max_tokens=3, logprobs=2).sampling == SamplingParams(max_tokens=3, logprobs=2)
    served = replace(SERVED, sampling={"max_tokens": 50})
    assert completion_call({"prompt": "a"}, served, Ignored()).sampling.max_tokens == 50
    assert (complete().start, complete(add_special_tokens=False).start) == (True, False)


def test_echo_of_the_prompt_alone():
    call = complete(max_tokens=0, echo=True, logprobs=1)
    assert (call.prompt_only, call.sampling) == (True, SamplingParams(max_tokens=1, logprobs=1, prompt_logprobs=1))
    (choice,) = choices(call, output("虎", logprobs=SCORES, prompt_logprobs=PROMPT_SCORES))
    assert (choice["text"], choice["finish_reason"]) == ("p", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.5]
    assert completion_body(call, [output("虎")], decode)["usage"]["completion_tokens"] == 0
    with pytest.raises(InvalidField, match="max_tokens"):
        complete(max_tokens=0)


def test_the_body():
    body = completion_body(complete(request_id="x"), [output("a tiger")], decode)
    assert {key: body[key] for key in ("id", "object", "model")} == {
        "id": "cmpl-x", "object": "text_completion", "model": "internvl3_5"
    }  # fmt: skip
    assert body["choices"] == [
        {
            "index": 0,
            "text": "a tiger",
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
        }
    ]


def test_several_prompts_are_counted_together():
    call = complete(["a", "b"], n=2)
    body = completion_body(call, [output("a", "b"), output("c", "d")], decode)
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert body["usage"]["prompt_tokens"] == 620
    assert body["usage"]["total_tokens"] == 652
    assert body["usage"]["prompt_tokens_details"]["tiles"] == 2


def test_logprobs_of_answers():
    (choice,) = choices(complete(logprobs=1), output("虎cd", logprobs=SCORES))
    assert choice["logprobs"] == {
        "text_offset": [0, 1],
        "token_logprobs": [-0.5, -3.0],
        "tokens": ["虎", "cd"],
        "top_logprobs": [{"虎": -0.5}, {"cd": -3.0, "b": -0.1}],
    }
    assert [next(iter(scores)) for scores in choice["logprobs"]["top_logprobs"]] == ["虎", "cd"]


def test_logprobs_of_an_echoed_prompt():
    call = complete([1, 2, 3], logprobs=1, echo=True)
    (choice,) = choices(call, output("虎cd", prompt=None, logprobs=SCORES, prompt_logprobs=PROMPT_SCORES))
    assert choice["text"] == "<1><2><3>虎cd"
    assert choice["logprobs"]["tokens"] == ["<1>", "P", "Q", "虎", "cd"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.5, -0.5, -3.0]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert choice["logprobs"]["text_offset"] == [0, 3, 4, 5, 6]


@pytest.mark.parametrize("interval", [1, 2])
def test_an_echoed_prompt_is_scored_in_a_stream_as_in_a_whole_answer(interval):
    call = complete([1, 2, 3], logprobs=1, echo=True, stream=True)
    whole = output("ab", prompt=None, prompt_token_ids=(1, 2, 3), logprobs=SCORES, prompt_logprobs=PROMPT_SCORES)
    asked = [Request("0", (1, 2, 3), SamplingParams())]
    stream = CompletionStream(call, asked, decode, interval)
    made = [
        replace(piece, token_id=token, scores=scores)
        for piece, token, scores in zip(pieces(["a", "b"]), whole.outputs[0].token_ids, SCORES, strict=True)
    ]
    chunks = [chunk for piece in made for chunk in stream.take(0, piece, USAGE, PROMPT_SCORES)]
    parts = [chunk["choices"][0] for chunk in chunks]
    (expected,) = choices(call, whole)
    assert "".join(part["text"] for part in parts) == expected["text"] == "<1><2><3>ab"
    for name, values in expected["logprobs"].items():
        assert [value for part in parts for value in part["logprobs"][name]] == values, name


def requests(*prompts):
    return [Request(str(n), (1, 2), SamplingParams(), prompt=prompt) for n, prompt in enumerate(prompts)]


def test_streamed():
    options = {"stream": True, "stream_options": {"include_usage": True}}
    call = complete(["a", "b"], echo=True, **options)
    stream = CompletionStream(call, requests("a", "b"), decode)
    chunks = []
    for first, second in zip(pieces(["x", "", "y"]), pieces(["", "u", ""], finish="length"), strict=True):
        chunks += stream.take(0, first, USAGE) + stream.take(1, second, USAGE)
    chunks += stream.finish([USAGE, USAGE])
    found = [(c["index"], c["text"], c["finish_reason"]) for chunk in chunks for c in chunk["choices"]]
    assert found == [(0, "ax", None), (1, "b", None), (1, "u", None), (0, "y", "stop"), (1, "", "length")]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["prompt_tokens"]) == ([], 620)
    assert all("usage" not in chunk for chunk in chunks[:-1])


def test_streamed_logprobs_have_offsets_in_the_answer():
    call = complete(logprobs=0, stream=True)
    stream = CompletionStream(call, requests("p"), decode)
    scores = {token: score(-0.5, 1, "ab") for token in (5, 6, 7)}
    chunks = [chunk for piece in pieces(["ab", "", "abab"], scores=scores) for chunk in stream.take(0, piece, USAGE)]
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks] == [[0], [2, 4]]


def test_streamed_prompt_alone():
    call = complete(max_tokens=0, echo=True, stream=True)
    (chunk,) = CompletionStream(call, requests("p"), decode).take(0, pieces(["x"])[0], USAGE)
    assert (chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) == ("p", "length")
