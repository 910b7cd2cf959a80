"""Tools and the calls that a request forces."""

import json
from dataclasses import replace

import jsonschema
import pytest

from tests.server.asking import LOOK, SERVED, ask
from tilewise.errors import InvalidField
from tilewise.sampling_params import StructuredOutputsParams

TREE = {
    "type": "function",
    "function": {
        "name": "plant",
        "parameters": {
            "type": "object",
            "properties": {"tree": {"$ref": "#/$defs/node"}},
            "required": ["tree"],
            "$defs": {"node": {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}}},
        },
    },
}
NAMED = {"type": "function", "function": {"name": "look"}}


def test_definitions_stand_in_the_prompt_as_in_the_training():
    (text,) = ask(tools=[LOOK]).prompt.tools
    assert text.startswith('{"type": "function", "function": {"name": "look", "description": "Look around."')
    assert json.loads(text) == LOOK


def test_choices():
    auto = ask(tools=[LOOK])
    assert (auto.parts.calls, auto.sampling.structured_outputs) == ("auto", None)
    none = ask(tools=[LOOK], tool_choice="none")
    assert (none.parts.calls, none.prompt.tools) == ("none", ())
    named = ask(tools=[LOOK, TREE], tool_choice=NAMED)
    assert (named.parts.calls, named.parts.name) == ("named", "look")
    assert named.sampling.structured_outputs == StructuredOutputsParams(json=LOOK["function"]["parameters"])
    assert ask(tools=[LOOK], parallel_tool_calls=False).parts.parallel is False


def test_required_calls_are_a_list_whose_references_find_their_way():
    structure = ask(tools=[LOOK, TREE], tool_choice="required").sampling.structured_outputs
    check = jsonschema.Draft202012Validator(structure.json)
    grown = {"name": "plant", "arguments": {"tree": {"child": {"child": {}}}}}
    assert check.is_valid([grown, {"name": "look", "arguments": {"where": "left"}}])
    for wrong in (
        [],
        [{"name": "look", "arguments": {}}],
        [{"name": "other", "arguments": {}}],
        [{"name": "plant", "arguments": {"tree": {"child": 1}}}],
    ):
        assert not check.is_valid(wrong)
    one = ask(tools=[LOOK, TREE], tool_choice="required", parallel_tool_calls=False).sampling.structured_outputs
    assert not jsonschema.Draft202012Validator(one.json).is_valid([grown, grown])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": []}, "`tools` must not be an empty array"),
        ({"tool_choice": "required"}, "When using `tool_choice`, `tools` must be set."),
        ({"tool_choice": NAMED, "tools": [TREE]}, "tool_choice names 'look', tools has plant"),
        ({"tools": [LOOK, LOOK]}, "comes twice"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "must have 1 to 256 characters"),
    ],
)
def test_what_does_not_go_together(fields, says):
    with pytest.raises(InvalidField) as caught:
        ask(**fields)
    assert says in str(caught.value)


def test_auto_needs_the_parser():
    with pytest.raises(InvalidField, match='"auto" tool choice requires --enable-auto-tool-choice'):
        ask(replace(SERVED, tools=False), tools=[LOOK])
    assert ask(replace(SERVED, tools=False), tools=[LOOK], tool_choice="required").parts.calls == "required"
