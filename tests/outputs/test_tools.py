"""Tool calls in answers, whatever the pieces are."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outputs.cutting import ANY_CUT, cut
from tests.outputs.reading import split_parts
from tilewise.outputs.parts import AnswerParts, Call, PartsRule, PartsSplitter

AUTO = PartsRule(calls="auto")
LOOK = '<tool_call>\n{"name": "look", "arguments": {"where": "left"}}\n</tool_call>'
WORDS = [
    *(LOOK, "<tool_call>", "</tool_call>", "</tool", "<tool_", "<think>a</think>", "\n", " ", "Hm.", "<", "图"),
    *('{"name": "look"', ', "arguments": ', '{"a": ', '"', "\\", "}", "]}", '"</tool_call>"', "{", "1", '"x<y"', "["),
    '{"arguments": {"b": [1, 2]}, "name": "other"}',
]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
RULES = st.sampled_from(
    [AUTO, PartsRule(calls="required"), PartsRule(calls="named", name="look"), PartsRule(), PartsRule(reasoning=False)]
)


def split(pieces: list[str], rule: PartsRule) -> AnswerParts:
    parts, splitter = AnswerParts(), PartsSplitter(rule)
    for piece in pieces:
        parts.add(splitter.add(piece))
    parts.add(splitter.finish())
    return parts


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (LOOK, "", [("look", '{"where": "left"}')]),
        (f"I look.\n{LOOK}\n{LOOK}\n", "I look.", [("look", '{"where": "left"}')] * 2),
        (f"{LOOK} Done.", " Done.", [("look", '{"where": "left"}')]),
        (LOOK.replace("arguments", "parameters"), "", [("look", '{"where": "left"}')]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "}</tool_call>"}}</tool_call>', "",
         [("f", '{"a": "}</tool_call>"}')]),
        ('<tool_call>{"name": "a<b", "arguments": {}}</tool_call>', "", [("a<b", "{}")]),
        # Broken before its arguments begin: content, as it came.
        ("Hm. <tool_call>{name: look}</tool_call>", "Hm. <tool_call>{name: look}</tool_call>", []),
        ("<tool_call>[1]</tool_call>!", "<tool_call>[1]</tool_call>!", []),
        ("<tool_call>", "<tool_call>", []),
        ('<tool_call>{"name": "look"', '<tool_call>{"name": "look"', []),
        ("a </tool_call> b <tool", "a </tool_call> b <tool", []),
        # Broken in its arguments: they are what came.
        ('<tool_call>{"name": "f", "arguments": {"a": [1}</tool_call>x', "x", [("f", '{"a": [1}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "cut sho', "", [("f", '{"a": "cut sho')]),
    ],
)  # fmt: skip
def test_whole(text, content, calls):
    parts = split_parts(text, AUTO)
    assert (parts.content, [(call.name, call.arguments) for call in parts.calls]) == (content, calls)


@settings(max_examples=1000)
@given(text=TEXTS, cuts=ANY_CUT, rule=RULES)
def test_any_cutting_gives_the_same_as_the_whole(text, cuts, rule):
    assert split(cut(text, cuts), rule) == split_parts(text, rule)


def test_a_name_that_holds_the_tag_is_cut_as_well_as_whole():
    text = '<tool_call>{"name": "a</tool_call>b", "arguments": {}}</tool_call>'
    assert split(list(text), AUTO) == split([text], AUTO) == AnswerParts(content=text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["</tool_call>", '"}', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.tuples(st.text(min_size=1, max_size=6), st.dictionaries(st.text(), JSON, max_size=3)), min_size=1)


@settings(max_examples=100)
@given(calls=CALLS, cuts=ANY_CUT, ascii_only=st.booleans())
def test_calls_of_any_arguments_come_back(calls, cuts, ascii_only):
    def write(value):
        return json.dumps(value, ensure_ascii=ascii_only)

    # A name that may hold the tag is the one thing that this form cannot say for sure.
    calls = [(name, value) for name, value in calls if "</" not in name]
    blocks = [f"<tool_call>\n{write({'name': n, 'arguments': v})}\n</tool_call>" for n, v in calls]
    parts = split(cut("Let me see.\n" + "\n".join(blocks), cuts), AUTO)
    assert [(call.name, json.loads(call.arguments)) for call in parts.calls] == calls
    assert parts.content.strip() == "Let me see."
    listed = write([{"name": n, "arguments": v} for n, v in calls])
    parts = split(cut(listed, cuts), PartsRule(calls="required"))
    assert [(call.name, json.loads(call.arguments)) for call in parts.calls] == calls


def test_a_name_that_is_no_json_is_no_call():
    assert not split_parts(r'[{"name": "lo\qk", "arguments": {}}]', PartsRule(calls="required")).calls


def test_arguments_grow_as_text():
    splitter = PartsSplitter(AUTO)
    assert not splitter.add('<tool_call>{"name": "look", "arg')
    first = splitter.add('uments": {"wh')
    assert [(call.name, call.arguments) for call in first.calls] == [("look", ""), (None, '{"wh')]
    assert [call.arguments for call in splitter.add('ere": "left').calls] == ['ere": "left']
    assert [call.arguments for call in splitter.add('"}}\n</tool_').calls] == ['"}']
    assert not splitter.add("call>")


def test_reasoning_content_and_calls():
    parts = split_parts(f"<think>Where? {LOOK}</think>\nI look.\n{LOOK}", AUTO)
    assert parts == AnswerParts(f"Where? {LOOK}", "I look.", [Call("look", '{"where": "left"}')])


def test_one_call_alone():
    parts = split_parts(f"{LOOK}\n{LOOK}", PartsRule(calls="auto", parallel=False))
    assert parts.calls == [Call("look", '{"where": "left"}')]


def test_named_call():
    assert split_parts('{"a": 1}', PartsRule(calls="named", name="f")) == AnswerParts(calls=[Call("f", '{"a": 1}')])


@pytest.mark.parametrize("rule", [AUTO, PartsRule(calls="required")])
def test_half_a_character_in_json_can_be_sent(rule):
    """Models spell characters by escapes, too, and JSON lets them write one half of a pair, which UTF-8 cannot."""
    call = '{"name": "a\\ud800", "arguments": {}}'
    text = f"[{call}]" if rule.calls == "required" else f"<tool_call>{call}</tool_call>"
    assert split_parts(text, rule).calls == [Call("a\ufffd", "{}")]
    other = '<tool_call>{"arguments": {"b": "\\udc00"}, "name": "a"}</tool_call>'
    assert split_parts(other, AUTO).calls == [Call("a", '{"b": "\ufffd"}')]
