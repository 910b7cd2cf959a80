"""Names that other APIs have for what has another name or place here: refused with the one that was meant."""

import pytest

from tests.inputs.vocabulary import small_tokenizer
from tests.server.asking import LOOK, PICTURE, QUESTION, SERVED, under
from tilewise.errors import InvalidField, InvalidRequest
from tilewise.ignored import Ignored
from tilewise.inputs.grammar import Grammars
from tilewise.inputs.media.reader import MediaOptions
from tilewise.inputs.messages import ParsedMessage
from tilewise.inputs.schema import unknown_keywords
from tilewise.sampling_params import StructuredOutputsParams
from tilewise.server.chat.call import chat_call
from tilewise.server.completions.call import completion_call
from tilewise.server.exchange import check_coding, parse_body
from tilewise.server.generation import naming_form
from tilewise.server.responses.call import response_call

ROUTES = {
    "chat": (chat_call, {"messages": [QUESTION]}),
    "completions": (completion_call, {"prompt": "a"}),
    "responses": (response_call, {"input": "a"}),
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
MEANT = [
    ("responses", "response_format", {"type": "json_object"}, "text.format"),
    ("responses", "guided_json", SCHEMA, "text.format"),
    ("responses", "guided_regex", "a", "structured_outputs.regex"),
    ("responses", "text_format", SCHEMA, "text.format"),
    ("responses", "format", "json", "text.format"),
    ("responses", "functions", [{"name": "f"}], "tools"),
    ("responses", "max_tokens_to_sample", 5, "max_output_tokens"),
    ("responses", "bad_words", ["a"], "/v1/chat/completions"),
    ("responses", "images", ["a"], "input_image"),
    ("chat", "text", {"format": {"type": "json_object"}}, "response_format"),
    ("chat", "reasoning", {"effort": "high"}, "reasoning_effort"),
    ("chat", "images", ["a"], "image_url"),
    ("chat", "mm_data", {"image": "a"}, "image_url"),
    ("chat", "nframes", 4, "media_io_kwargs"),
    ("chat", "fps", 2, "video.fps"),
    ("chat", "dynamic_image_size", False, "mm_processor_kwargs"),
    ("chat", "disable_any_whitespace", True, "structured_outputs"),
    ("completions", "tools", [LOOK], "/v1/chat/completions"),
    ("completions", "image", "a", "/v1/chat/completions"),
    ("completions", "system_prompt", "a", "prompt"),
    *((route, "topP", 0.5, "top_p") for route in ROUTES),
    *((route, "topK", 5, "top_k") for route in ROUTES),
    *((route, "stop-token-ids", [5], "stop_token_ids") for route in ROUTES),
    *((route, "stop_sequences", ["a"], "stop") for route in ROUTES),
    *((route, "temp", 0.5, "temperature") for route in ROUTES),
    *((route, "generationConfig", {"topK": 1}, "beside the other fields") for route in ROUTES),
    *((route, "options", {"top_k": 1}, "beside the other fields") for route in ROUTES),
]


@pytest.mark.parametrize(("route", "name", "value", "meant"), MEANT)
def test_a_name_of_another_api_is_refused_with_the_one_here(route, name, value, meant):
    call, body = ROUTES[route]
    with pytest.raises(InvalidField) as caught:
        call({**body, name: value}, SERVED, Ignored())
    assert caught.value.param == name
    assert meant in str(caught.value).partition(name)[2]


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["input_schema", "inputSchema"])
def test_the_schema_of_a_tool_is_its_parameters(name, inside):
    function = {"name": "f", name: SCHEMA}
    tool = {"type": "function", "function": function} if inside else function
    with pytest.raises(InvalidField, match=f"{name} is not taken, its name here is parameters"):
        chat_call({"messages": [QUESTION], "tools": [tool]}, SERVED, Ignored())


@pytest.mark.parametrize("role", ["User", "USER", "SYSTEM", "Assistant", "Developer", "Tool"])
def test_a_role_in_capitals_is_refused(role):
    with pytest.raises(InvalidField, match=f"Did you mean {role.lower()}\\?"):
        chat_call({"messages": [{"role": role, "content": "a"}]}, SERVED, Ignored())


def test_a_null_of_the_user_is_an_empty_text():
    call = chat_call({"messages": [{"role": "user", "content": None}]}, SERVED, Ignored())
    assert call.prompt.messages == (ParsedMessage("user", [""]),)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [("requred", "required"), ("minimun", "minimum"), ("propertes", "properties"), ("max_items", "maxItems")],
)
def test_a_keyword_that_was_meant_to_be_another_is_refused(keyword, meant):
    with pytest.raises(InvalidRequest, match=f"Did you mean {meant}\\?"):
        unknown_keywords({"properties": {"a": {"anyOf": [{keyword: 1}]}}}, "the schema")


def test_other_unknown_keywords_are_told_and_annotations_are_not():
    annotations = {"title": "a", "x-order": 1, "$comment": "b", "examples": [], "readOnly": True, "nullable": True}
    said = {"contentEncoding": "base64", "propertyOrdering": ["a"], "note": "n", "enum": [{"requred": 1}]}
    found = unknown_keywords({"properties": {"requred": {**annotations, **said}}}, "the schema")
    assert tuple(found) == ("contentEncoding", "propertyOrdering", "note")
    with pytest.raises(InvalidRequest, match="more than 64"):
        unknown_keywords({f"zz{number}" * 5: 1 for number in range(65)}, "the schema")


def test_grammars_name_unknown_keywords():
    tokenizer = small_tokenizer()
    grammars = Grammars(tokenizer, [tokenizer.special_id("<|im_end|>")])
    schema = {"type": "object", "properties": {"a": {"type": "integer", "propertyOrdering": []}}}
    assert "propertyOrdering" in grammars.compile(StructuredOutputsParams(json=schema)).unenforced
    with (
        pytest.raises(InvalidField, match=r"^response_format has the keyword 'requred'") as caught,
        naming_form("response_format"),
    ):
        grammars.compile(StructuredOutputsParams(json={"type": "object", "requred": ["a"]}))
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_the_place_of_a_tools_schema(choice):
    call = chat_call({"messages": [QUESTION], "tools": [LOOK], "tool_choice": choice}, SERVED, Ignored())
    assert call.form_field == "tools[0].function.parameters"


def test_a_wrong_schema_among_several_is_named():
    wrong = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "requred": ["a"]}}}
    with pytest.raises(InvalidField) as caught:
        chat_call({"messages": [QUESTION], "tools": [LOOK, wrong], "tool_choice": "required"}, SERVED, Ignored())
    assert caught.value.param == "tools[1].function.parameters"


def test_limits_of_an_answer():
    with pytest.raises(InvalidRequest, match="allowed_token_ids"):
        chat_call({"messages": [QUESTION], "allowed_token_ids": []}, SERVED, Ignored())
    ignored = Ignored()
    call = chat_call({"messages": [QUESTION], "max_tokens": 5, "max_completion_tokens": 6}, SERVED, ignored)
    assert (call.sampling.max_tokens, ignored.names) == (6, ("max_tokens",))


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_bodies_of_other_encodings(coding):
    assert parse_body('{"a": "图"}'.encode(coding)) == {"a": "图"}


def test_a_name_comes_once_in_an_object():
    with pytest.raises(InvalidField, match="'n' twice") as caught:
        parse_body(b'{"a": [{"n": 1, "b": 2, "n": 3}]}')
    assert caught.value.param == "n"
    assert parse_body(b'{"n": {"n": 1}}') == {"n": {"n": 1}}


def test_a_compressed_body_is_refused_with_the_remedy():
    check_coding(None)
    check_coding("identity")
    with pytest.raises(InvalidRequest, match="Content-Encoding: 'gzip' is not taken: send the body uncompressed"):
        check_coding("gzip")


@pytest.mark.parametrize("value", ["2", 2.0, 2])
def test_numbers_within_objects_are_read_as_those_outside(value):
    options = {"mm_processor_kwargs": {"max_dynamic_patch": value}, "max_dynamic_patch": 2}
    assert chat_call({"messages": [QUESTION], **options}, SERVED, Ignored()).prompt.processor["max_dynamic_patch"] == 2
    assert MediaOptions.of({"video": {"num_frames": value, "fps": value}}) == MediaOptions(num_frames=2, fps=2.0)


def test_items_are_named_as_the_body_has_them():
    item = {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}
    with pytest.raises(InvalidField, match=r"^input\[0\].content\[0\]: file_id is not taken") as caught:
        response_call({"input": [item], "instructions": "Be brief."}, SERVED, Ignored())
    assert caught.value.param == "input[0].content[0].file_id"


def test_what_has_no_hint_is_left_out_without_condition():
    part = {**PICTURE, "image_url": {**PICTURE["image_url"]}}
    strict = under(strict_fields=True)
    with pytest.raises(InvalidField, match=r"has no field 'zzz'. Leave it out\.$"):
        chat_call({"messages": [{"role": "user", "content": [part]}], "zzz": 1}, strict, Ignored())
