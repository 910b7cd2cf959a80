"""Schemas, tools and reasoning over HTTP: the demo model, and twins of models that write in other forms."""

import json

import pytest

from tests.called import called
from tests.served import Served, served
from tests.server.asking import LOOK
from tests.server.live import chat, error_of
from tests.tiny import SPECS, write_hf

TWICE = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
"""What follows all of it but `uniqueItems` is [1, 1] alone."""
PERSON = {"type": "object", "properties": {"name": {"enum": ["cat", "dog"]}, "tags": None}, "required": None}
STRICT_LOOK = {**LOOK, "function": {**LOOK["function"], "parameters": TWICE, "strict": True}}
HARMONY = """start: thought <|start|> "assistant" <|channel|> HEAD <|message|> BODY
thought: <|channel|> "analysis" <|message|> "Hm." <|end|>
HEAD: "commentary to=functions.look " | "final"
BODY: "{\\"where\\": \\"left\\"}" """
ACTION = """start: "I look." <|action_start|> <|plugin|> BODY <|action_end|>
BODY: "{\\"name\\": \\"look\\", \\"parameters\\": {\\"where\\": \\"left\\"}}" """


def schema_of(schema: dict, strict: bool | None = None) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": strict}}


def chunks(answer) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return [choice for line in lines for choice in json.loads(line)["choices"]]


def together(choices: list[dict]) -> tuple[str, str, list[tuple[str, str]]]:
    """Reasoning, content and calls of a stream."""
    deltas = [choice["delta"] for choice in choices]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    names = [call["name"] for call in calls if call.get("name")]
    arguments = "".join(call["arguments"] for call in calls)
    said = ["".join(delta.get(key) or "" for delta in deltas) for key in ("reasoning", "content")]
    return said[0], said[1], [(name, arguments) for name in names]


def test_an_object_that_lists_its_properties_ends(live: Served):
    answer = chat(live, response_format=schema_of(PERSON), max_tokens=200, temperature=2.0, seed=1).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert set(json.loads(answer["choices"][0]["message"]["content"])) <= {"name", "tags"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strict", [True, None])
def test_what_is_not_enforced_is_named_and_a_strict_answer_says_so(live: Served, stream: bool, strict: bool | None):
    answer = chat(live, response_format=schema_of(TWICE, strict), max_tokens=40, stream=stream)
    assert answer.headers["x-tilewise-ignored"] == "schema.uniqueItems"
    last = chunks(answer)[-1] if stream else answer.json()["choices"][0]
    assert last["finish_reason"] == "stop"
    assert last.get("schema_errors") == (["$: [1, 1] has non-unique elements"] if strict else None)


def test_a_strict_function_and_a_strict_response(live: Served):
    named = {"type": "function", "function": {"name": "look"}}
    answer = chat(live, tools=[STRICT_LOOK], tool_choice=named, max_tokens=40)
    assert answer.json()["choices"][0]["schema_errors"] == ["$: [1, 1] has non-unique elements"]
    form = {"type": "json_schema", "name": "a", "schema": TWICE, "strict": True}
    body = {"input": "Hi", "text": {"format": form}, "max_output_tokens": 40}
    assert live.client.post("/v1/responses", json=body).json()["schema_errors"] == ["$: [1, 1] has non-unique elements"]


def test_a_check_without_end_says_that_it_had_none(live: Served):
    schema = {"type": "string", "enum": ["a" * 40 + "!"], "allOf": [{"not": {"pattern": "^(a|a)*$"}}]}
    answer = chat(live, response_format=schema_of(schema, strict=True), max_tokens=100).json()
    assert answer["choices"][0]["schema_errors"] == [
        "The answer could not be checked against its schema within 2 seconds."
    ]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"response_format": {"type": "regex_schema", "regex_schema": "(ab){2}"}}, "abab"),
        ({"response_format": {"type": "json_object", "schema": {"const": 5}}}, "5"),
        ({"response_format": {"type": "structural_tag", "format": {"type": "const_string", "value": "x"}}}, "x"),
        ({"structured_outputs": {"structural_tag": '{"format": {"type": "const_string", "value": "x"}}'}}, "x"),
        ({"guided_json": {"const": 5}, "guided_decoding_backend": "outlines", "guided_whitespace_pattern": " "}, "5"),
        ({"guided_grammar": '?start: "b"'}, "b"),
    ],
)
def test_forms_of_other_servers(live: Served, form: dict, text: str):
    answer = chat(live, max_tokens=20, **form)
    assert answer.json()["choices"][0]["message"]["content"] == text


def test_a_form_that_is_left_none_of_its_tokens_is_the_requests_fault(live: Served):
    answer = chat(live, response_format=schema_of({"const": 5}), allowed_token_ids=[0], max_tokens=5)
    assert answer.status_code == 400
    assert "leave it the tokens that it needs (allowed_token_ids" in error_of(answer)["message"]


def test_only_functions_can_be_called(live: Served):
    error = error_of(chat(live, tools=[{"type": "web_search"}]))
    assert error["param"] == "tools[0].type"
    assert "only tools of type function can be called here, got 'web_search'" in error["message"]


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gptoss")
    write_hf(folder, SPECS["gptoss-300m-head"])
    with served(str(folder), "--max-model-len", "1024", "--enable-auto-tool-choice") as server:
        yield server


@pytest.fixture(scope="module")
def internlm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internlm2")
    write_hf(folder, SPECS["internlm2-300m"])
    with served(str(folder), "--max-model-len", "2048", "--enable-auto-tool-choice") as server:
        yield server


def forced(head: str) -> dict:
    return {"structured_outputs": {"grammar": HARMONY.replace('"commentary to=functions.look " | "final"', head)}}


@pytest.mark.parametrize("stream", [False, True])
def test_channels_and_calls_of_gpt_oss(gpt_oss: Served, stream: bool):
    fields = {"tools": [LOOK], "stream": stream, "max_tokens": 120}
    answer = chat(gpt_oss, **fields, **forced('"commentary to=functions.look "'))
    said = chat(gpt_oss, **fields, **forced('"final"'))
    if stream:
        assert together(chunks(answer)) == ("Hm.", "", [("look", '{"where": "left"}')])
        assert together(chunks(said)) == ("Hm.", '{"where": "left"}', [])
        return
    choice = answer.json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["reasoning"], choice["message"]["content"]) == (
        "tool_calls",
        "Hm.",
        None,
    )
    assert (call["function"]["name"], call["function"]["arguments"]) == ("look", '{"where": "left"}')
    assert said.json()["choices"][0]["message"]["content"] == '{"where": "left"}'


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_internlm2(internlm2: Served, stream: bool):
    answer = chat(internlm2, tools=[LOOK], stream=stream, max_tokens=90, structured_outputs={"grammar": ACTION})
    if stream:
        assert together(chunks(answer)) == ("", "I look.", [("look", '{"where": "left"}')])
        return
    choice = answer.json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "I look.")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"where": "left"}'}


def test_parsers_of_other_models_are_refused(internlm2: Served, tmp_path):
    write_hf(tmp_path, SPECS["qwen2-300m"])
    for flags in (["--tool-call-parser", "openai"], ["--reasoning-parser", "openai_gptoss"]):
        refused = called("serve", tmp_path, "--port", "0", *flags)
        assert refused.returncode == 1
        assert "does not fit this model" in refused.stderr
