"""Messages of GPT-OSS and calls of InternLM2, whatever the pieces are.

The texts are those of openai/harmony's `docs/format.md` and of InternLM's `chat/chat_format.md`.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outputs.cutting import ANY_CUT, cut
from tests.outputs.reading import split_parts
from tests.outputs.test_tools import split
from tilewise.outputs.parts import PartsRule

THOUGHT = "<|channel|>analysis<|message|>User asks: 2 + 2.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>2 + 2 = 4."
ARGUMENTS = '{"location":"San Francisco"}'
CALL = f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>"
FIRST = f" to=functions.get_weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>"
ACTION = '<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"location": "上海"}}<|action_end|>'
HARMONY = PartsRule(calls="auto", form="openai")
WORDS = [
    *(THOUGHT, FINAL, CALL, FIRST, "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>"),
    *("analysis", "final", "commentary", " to=", "functions.f", "assistant", "<", "<|", "a b", "\n", "图", ACTION),
    *("<|action_start|>", "<|plugin|>", "<|action_end|>", '{"name": "f", "parameters": {', "}}"),
]


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        (THOUGHT + FINAL, "User asks: 2 + 2.", "2 + 2 = 4.", []),
        (f"{THOUGHT}<|start|>assistant{CALL}", "User asks: 2 + 2.", "", [("get_weather", ARGUMENTS)]),
        (f"{THOUGHT}<|start|>assistant{FIRST}", "User asks: 2 + 2.", "", [("get_weather", ARGUMENTS)]),
        (FIRST, "", "", [("get_weather", ARGUMENTS)]),
        (
            f"{THOUGHT}<|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{CALL}",
            "User asks: 2 + 2.",
            "I look.",
            [("get_weather", ARGUMENTS)],
        ),
        (f"{THOUGHT}<|start|>assistant{THOUGHT}{FINAL}", "User asks: 2 + 2.\nUser asks: 2 + 2.", "2 + 2 = 4.", []),
        ("<|channel|>final<|message|>Red", "", "Red", []),
        ('{"a": 1}', "", '{"a": 1}', []),
        ("<|channel|>analysis<|message|>cut sho", "cut sho", "", []),
        ("<|channel|>analysis", "", "", []),
        ("1 < 2 <|x|>", "", "1 < 2 <|x|>", []),
        (" to the left", "", " to the left", []),
    ],
)
def test_messages_of_harmony(text, reasoning, content, calls):
    parts = split_parts(text, HARMONY)
    assert (parts.reasoning, parts.content) == (reasoning, content)
    assert [(call.name, call.arguments) for call in parts.calls] == calls


def test_reasoning_behind_content_stays_behind_it_where_nobody_asked_to_have_it_apart():
    text = "Hm.<|channel|>analysis<|message|>A word."
    assert split_parts(text, PartsRule(reasoning=False, form="openai")).content == "Hm.A word."


def test_channels_nobody_asked_to_be_told_apart():
    parts = split_parts(THOUGHT + FINAL, PartsRule(reasoning=False, form="openai"))
    assert (parts.reasoning, parts.content) == ("", "User asks: 2 + 2.2 + 2 = 4.")
    assert split_parts(CALL, PartsRule(form="openai")).content == ARGUMENTS
    listed = '[{"name": "f", "arguments": {"a": 1}}]'
    (call,) = split_parts(listed, PartsRule(calls="required", form="openai")).calls
    assert (call.name, call.arguments) == ("f", '{"a": 1}')


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (ACTION, "", [("get_weather", '{"location": "上海"}')]),
        (f"I look.{ACTION}\n{ACTION}", "I look.", [("get_weather", '{"location": "上海"}')] * 2),
        ("<|action_start|><|interpreter|>print(1)", "<|action_start|><|interpreter|>print(1)", []),
        ("<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>", []),
    ],
)
def test_calls_of_internlm2(text, content, calls):
    parts = split_parts(text, PartsRule(calls="auto", form="internlm"))
    assert (parts.content, [(call.name, call.arguments) for call in parts.calls]) == (content, calls)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), max_size=10).map("".join),
    ANY_CUT,
    st.sampled_from([HARMONY, PartsRule(form="openai"), PartsRule(calls="auto", form="internlm")]),
)
def test_the_pieces_do_not_matter(text, lengths, rule):
    assert split(cut(text, lengths), rule) == split_parts(text, rule)
