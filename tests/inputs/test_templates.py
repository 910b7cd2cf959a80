"""Prompts to the character, markers to the right media, and user text that never becomes a control token."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inputs.vocabulary import CONTROL, GROUNDING, NOT_SPECIAL
from tilewise.errors import InvalidCheckpoint, InvalidRequest
from tilewise.inputs.pieces import ImageSlot, MediaPlace, Message, Special, Text, join_text, to_string
from tilewise.inputs.templates import SYSTEM_THINKING, TEMPLATES
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.inputs.tool_text import TOOL_FORMS

S2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
S25 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
THINKING = """\
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the answer from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone and not reference the thinking section."""  # noqa: E501
GPT_OSS = """\
You are InternVL, a large language model trained by Shanghai AI Laboratory.
Knowledge cutoff: 2024-06
Current date: 2025-08-06

Reasoning: low

# Valid channels: final. Channel must be included for every message."""
ALL = sorted(TEMPLATES)
CHATML = ["Hermes-2", "internlm2-chat", "internvl2_5"]


def user(text: str, images: int = 0, videos: tuple[int, ...] = ()) -> Message:
    return Message("user", text, images, videos)


def rendered(name: str, *messages: Message, thinking: bool = False) -> str:
    return to_string(TEMPLATES[name].render(messages, thinking))


@pytest.mark.parametrize("name", ["Hermes-2", "internlm2-chat"])
def test_internvl2_prompt_has_no_newline_after_a_turn(name):
    expected = f"<|im_start|>system\n{S2}<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    assert rendered(name, user("Hi")) == expected


def test_internvl2_5_prompt_has_a_newline_after_a_turn():
    expected = f"<|im_start|>system\n{S25}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert rendered("internvl2_5", user("Hi")) == expected


@pytest.mark.parametrize(("name", "gap"), [("Hermes-2", ""), ("internlm2-chat", ""), ("internvl2_5", "\n")])
def test_several_turns(name, gap):
    turns = [user("<image>\nA?", 1), Message("assistant", "B."), user("C?")]
    expected = (
        f"<|im_start|>user\n<image>\nA?<|im_end|>{gap}<|im_start|>assistant\nB.<|im_end|>{gap}"
        f"<|im_start|>user\nC?<|im_end|>{gap}<|im_start|>assistant\n"
    )
    assert rendered(name, *turns).endswith(f"<|im_end|>{gap}{expected}")


def test_phi3_prompt():
    expected = f"<|system|>\n{S2}<|end|><|user|>\nHi<|end|><|assistant|>\n"
    assert rendered("phi3-chat", user("Hi")) == expected
    assert TEMPLATES["phi3-chat"].stop_tokens == ("<|end|>",)


def test_gpt_oss_prompt():
    turns = [user("A?"), Message("assistant", "B."), user("C?")]
    expected = (
        f"<|start|>system<|message|>{GPT_OSS}<|end|><|start|>user<|message|>A?<|end|>"
        "<|start|>assistant<|channel|>final<|message|>B.<|end|><|start|>user<|message|>C?<|end|><|start|>assistant"
    )
    assert rendered("internvl3_5_gpt_oss", *turns) == expected
    assert TEMPLATES["internvl3_5_gpt_oss"].stop_tokens == ("<|return|>", "<|call|>")


@pytest.mark.parametrize("name", CHATML)
def test_a_given_system_text_replaces_the_built_in_one(name):
    text = rendered(name, Message("system", "Be brief."), user("Hi"))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert TEMPLATES[name].system not in text


@pytest.mark.parametrize("name", CHATML)
def test_an_empty_system_text_means_no_system_turn(name):
    assert rendered(name, Message("system", ""), user("Hi")).startswith("<|im_start|>user\nHi<|im_end|>")


def test_thinking_takes_the_place_of_the_built_in_system_text():
    assert SYSTEM_THINKING == THINKING
    assert rendered("internvl2_5", user("Hi"), thinking=True).startswith(f"<|im_start|>system\n{THINKING}<|im_end|>")


@pytest.mark.parametrize("name", sorted(name for name in ALL if TEMPLATES[name].thinking is None))
def test_models_that_were_not_trained_to_think_refuse_it(name):
    with pytest.raises(InvalidRequest, match=f"{name} has no thinking mode"):
        rendered(name, user("Hi"), thinking=True)


def test_a_given_system_text_goes_before_thinking():
    assert "Be brief." in rendered("internvl2_5", Message("system", "Be brief."), user("Hi"), thinking=True)


@pytest.mark.parametrize("name", ALL)
def test_the_text_of_another_model_never_appears(name):
    assert "Alibaba" not in rendered(name, user("Hi"))


def test_stop_tokens():
    assert TEMPLATES["Hermes-2"].stop_tokens == ("<|im_end|>", "<|endoftext|>")
    assert TEMPLATES["internvl2_5"].stop_tokens == ("<|im_end|>",)


def test_only_the_template_s_own_marks_are_special():
    pieces = TEMPLATES["internvl2_5"].render([user("<|im_end|> x", 1)])
    specials = [piece.token for piece in pieces if isinstance(piece, Special)]
    assert specials == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert any(isinstance(piece, Text) and "<|im_end|> x" in piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (user("Look: <image> and <image>!", 2), "Look: <image> and <image>!"),
        (user("What?", 2), "<image>\n<image>\nWhat?"),
        (user("What?", 1, (2,)), "<image>\nFrame1: <image>\nFrame2: <image>\nWhat?"),
        (user("<video>\nWhy?", 0, (1,)), "Frame1: <image>\nWhy?"),
        (user("See <video> then <image>", 1, (1,)), "See Frame1: <image> then <image>"),
        (user("", 1), "<image>\n"),
        (user("", 0), ""),
        (user("the tag <video> of HTML"), "the tag <video> of HTML"),
        (user("the tag <image> of HTML"), "the tag <image> of HTML"),
        (user("the tag <image> of HTML", 0, (1,)), "Frame1: <image>\nthe tag <image> of HTML"),
        (user("<IMAGE_TOKEN> and <IMG_CONTEXT>"), "<IMAGE_TOKEN> and <IMG_CONTEXT>"),
        (user("Look: <IMAGE_TOKEN>!", 1), "Look: <image>!"),
    ],
)
def test_markers(message, expected):
    prompt = rendered("internvl2_5", Message("system", ""), message)
    assert prompt == f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"


IMAGE, VIDEO = MediaPlace("image"), MediaPlace("video")
SENT = ("AAA", IMAGE, "BBB", IMAGE, "CCC")


# "as looped" is what the template of InternVL3-*-hf gives for a list: `<IMG_CONTEXT>` and a line break for a picture, a
# text as it is. "as sent" joins texts and placeholders by line breaks, as vLLM's --interleave-mm-strings does.
@pytest.mark.parametrize(
    ("order", "parts", "expected"),
    [
        ("media first", SENT, "<image>\n<image>\nAAA\nBBB\nCCC"),
        ("as sent", SENT, "AAA\n<image>\nBBB\n<image>\nCCC"),
        ("as looped", SENT, "AAA<image>\nBBB<image>\nCCC"),
        ("as looped", ("A", "B"), "AB"),
        ("as sent", ("A", "B"), "A\nB"),
        ("as looped", ("A", VIDEO, "B", IMAGE), "AFrame1: <image>\nFrame2: <image>\nB<image>\n"),
        ("as looped", ("<image>A", "B", IMAGE), "<image>AB"),
        ("as sent", ("how <image> is written", VIDEO), "how <image> is written\nFrame1: <image>\nFrame2: <image>"),
    ],
)
def test_order_of_parts(order, parts, expected):
    texts = [part for part in parts if isinstance(part, str)]
    videos = (2,) * parts.count(VIDEO)
    message = Message("user", "\n".join(texts), parts.count(IMAGE), videos, parts=parts)
    prompt = to_string(replace(TEMPLATES["internvl2_5"], order=order).render([Message("system", ""), message]))
    assert prompt == f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"


def test_media_in_order_have_their_numbers():
    turns = [user("", 1), Message("user", "", 2, (2, 1), parts=(VIDEO, IMAGE, VIDEO, IMAGE)), user("", 1)]
    assert slots(replace(TEMPLATES["internvl2_5"], order="as sent").render(turns)) == [0, 3, 4, 1, 5, 2, 6]


@pytest.mark.parametrize("name", ["Hermes-2", "internlm2-chat", "internvl2_5"])
def test_chatml_shows_every_role_where_it_stands(name):
    end = "<|im_end|>\n" if name == "internvl2_5" else "<|im_end|>"
    roles = {"system": "A", "user": "B", "critic": "C"}
    turns = [Message(role, text, 1) for role, text in roles.items()] + [Message("system", "D"), Message("system", "E")]
    expected = "".join(f"<|im_start|>{role}\n<image>\n{text}{end}" for role, text in roles.items())
    expected += f"<|im_start|>system\nD{end}<|im_start|>system\nE{end}<|im_start|>assistant\n"
    assert rendered(name, *turns) == expected
    assert slots(TEMPLATES[name].render(turns)) == [0, 1, 2]


def test_a_system_behind_a_user_leaves_the_built_in_text():
    prompt = rendered("internvl2_5", user("A"), Message("system", "B"))
    assert prompt.startswith("<|im_start|>system\n你是书生·万象")
    assert "<|im_start|>user\nA<|im_end|>\n<|im_start|>system\nB<|im_end|>\n" in prompt


@pytest.mark.parametrize("name", ["phi3-chat", "internvl3_5_gpt_oss"])
def test_other_templates_join_system_texts_at_the_start(name):
    apart = [Message("system", "A"), user("B"), Message("system", "C")]
    assert rendered(name, *apart) == rendered(name, Message("system", "A\n\nC"), user("B"))
    assert rendered(name, user("B"), Message("system", "C")) == rendered(name, Message("system", "C"), user("B"))
    with pytest.raises(InvalidRequest, match="system texts at the start: the last cannot go on"):
        TEMPLATES[name].render(apart, ending="continue")


@pytest.mark.parametrize("name", ["phi3-chat", "internvl3_5_gpt_oss"])
@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message("critic", "A"), "knows the roles system, user, assistant, developer, tool, got 'critic'"),
        (Message("system", "A", 1), "shows pictures and videos in messages of role user alone, got one of role system"),
        (
            Message("tool", "A", 0, (2,)),
            "shows pictures and videos in messages of role user alone, got one of role too",
        ),
    ],
)
def test_what_other_templates_have_no_place_for_is_refused(name, message, says):
    with pytest.raises(InvalidRequest, match=says):
        TEMPLATES[name].render([message, user("B")])


def test_pictures_that_a_tool_gave_back():
    turns = [user("A", 1), Message("tool", "a wall", 1), Message("tool", "", 1), user("B", 1)]
    pieces = TEMPLATES["internvl2_5"].render(turns)
    assert slots(pieces) == [0, 1, 2, 3]
    shown = "<tool_response>\n<image>\na wall\n</tool_response>\n<tool_response>\n<image>\n\n</tool_response>"
    assert f"<|im_start|>user\n{shown}<|im_end|>" in to_string(pieces)


def slots(pieces) -> list[int]:
    return [piece.index for piece in pieces if isinstance(piece, ImageSlot)]


def test_pictures_and_videos_of_one_message_map_to_their_media():
    """Numbers: two pictures first, then the frames of the videos, wherever the markers stand."""
    turns = [user("", 5), user("<video><image><video><image>", 2, (2, 3)), user("", 1)]
    assert slots(TEMPLATES["internvl2_5"].render(turns)) == [0, 1, 2, 3, 4, 7, 8, 5, 9, 10, 11, 6, 12]


def test_numbers_go_on_from_message_to_message():
    turns = [user("A", 1, (2,)), Message("assistant", "B"), user("C <image>", 1)]
    assert slots(TEMPLATES["internvl2_5"].render(turns)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (user("<image>", 2), "The user message has 1 <image> markers for 2 pictures"),
        (user("<image><image>", 1), "The user message has 2 <image> markers for 1 pictures"),
        (user("<IMAGE_TOKEN>", 2), "The user message has 1 <IMAGE_TOKEN> markers for 2 pictures"),
        (user("<video>", 0, (1, 1)), "The user message has 1 <video> markers for 2 videos"),
    ],
)
def test_wrong_numbers_of_markers_are_refused_with_both_counts(message, words):
    with pytest.raises(InvalidRequest, match=f"{words}: write one marker for each, or none"):
        TEMPLATES["internvl2_5"].render([message])


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_markers_that_others_than_users_write_are_text(role):
    turns = [Message(role, "the <image> and <video> marks"), user("Hi")]
    assert "the <image> and <video> marks" in rendered("internvl2_5", *turns)


def test_neighbouring_texts_are_joined_and_empty_ones_dropped():
    pieces = [Text("a"), Text(""), Text("b"), Special("<|im_end|>"), Text(""), ImageSlot(0), Text("c")]
    assert join_text(pieces) == [Text("ab"), Special("<|im_end|>"), ImageSlot(0), Text("c")]


FRAGMENTS = st.sampled_from(
    [*CONTROL, *NOT_SPECIAL, "<", "|", ">", "im_", "end|>", "<|im_", "_CONTEXT>", "\n", "图", "é"]
)
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(max_size=5))).map("".join)


@settings(max_examples=300)
@given(text=TEXTS)
def test_no_text_encodes_to_a_control_token_and_all_of_it_comes_back(tokenizer, control_ids, text):
    ids = tokenizer.encode_text(text)
    assert not control_ids & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert any(mark in text for mark in GROUNDING) or tokenizer.decode(ids) == text


@settings(max_examples=100)
@given(text=TEXTS.filter(lambda text: "<image>" not in text), system=TEXTS)
def test_no_message_adds_control_tokens_to_its_prompt(tokenizer, control_ids, text, system):
    pieces = TEMPLATES["internvl2_5"].render([Message("system", system), user(text)])
    ids = tokenizer.encode_pieces(pieces)
    turns = 2 if system else 1
    assert sum(i in control_ids for i in ids) == 2 * turns + 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == to_string(pieces)


@pytest.mark.parametrize("token", [*CONTROL, *NOT_SPECIAL])
def test_raw_prompts_mean_their_tokens(tokenizer, token):
    assert tokenizer.encode_raw(f"a{token}b").count(tokenizer.special_id(token)) == 1


@pytest.mark.parametrize("token", GROUNDING)
def test_grounding_marks_stay_tokens(tokenizer, token):
    assert tokenizer.special_id(token) in tokenizer.encode_text(f"where is {token}the panda")


def test_grounding_marks_can_be_shown_or_skipped(tokenizer):
    ids = tokenizer.encode_text("<ref>panda</ref><box>[[1, 2]]</box>")
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<ref>panda</ref><box>[[1, 2]]</box>"
    assert tokenizer.decode(ids) == "panda[[1, 2]]"


def test_a_tokenizer_without_image_tokens_is_refused():
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models

    bare = FastTokenizer(models.BPE({"a": 0}, [])).to_str()
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json: the tokenizer has no token <IMG_CONTEXT>"):
        Tokenizer(bare)


LOOK = '{"type": "function", "function": {"name": "look"}}'
TOOL_SECTION = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "look"}}
{"a": 1}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def test_tools_stand_behind_the_system_text():
    tools = [LOOK, '{"a": 1}']
    template = TEMPLATES["internvl2_5"]
    start = f"<|im_start|>system\n{S25}\n\n{TOOL_SECTION}<|im_end|>\n<|im_start|>user\n"
    assert to_string(template.render([user("Hi")], tools=tools)).startswith(start)
    prompt = to_string(template.render([Message("system", "Be brief."), user("Hi")], tools=tools))
    assert prompt.startswith(f"<|im_start|>system\nBe brief.\n\n{TOOL_SECTION}<|im_end|>\n")
    prompt = to_string(template.render([Message("system", ""), user("Hi")], tools=tools))
    assert prompt.startswith(f"<|im_start|>system\n{TOOL_SECTION}<|im_end|>\n")


def test_calls_and_results_stand_in_their_turns():
    turns = [
        user("<image>Look.", 1),
        Message("assistant", "I look.", calls=('{"name": "look", "arguments": {}}', '{"name": "b", "arguments": {}}')),
        Message("tool", "a wall"),
        Message("tool", "a door"),
        Message("assistant", "", calls=('{"name": "c", "arguments": {}}',)),
        Message("tool", "<image>"),
        user("<image>And?", 1),
    ]
    pieces = TEMPLATES["internvl2_5"].render(turns)
    assert [piece.index for piece in pieces if isinstance(piece, ImageSlot)] == [0, 1]
    assert to_string(pieces).endswith(
        "<|im_start|>user\n<image>Look.<|im_end|>\n"
        '<|im_start|>assistant\nI look.\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\na wall\n</tool_response>\n"
        "<tool_response>\na door\n</tool_response><|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "c", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n<image>\n</tool_response><|im_end|>\n"
        "<|im_start|>user\n<image>And?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", ["phi3-chat"])
@pytest.mark.parametrize("what", [{"tools": [LOOK]}, {"calls": (LOOK,)}, {"role": "tool"}])
def test_templates_without_a_form_for_tools_refuse_them(name, what):
    message = Message(what.get("role", "assistant"), "a", calls=what.get("calls", ()))
    with pytest.raises(InvalidRequest, match=f"{name} has no form for tools"):
        TEMPLATES[name].render([user("Hi"), message], tools=what.get("tools", ()))


def test_marks_are_tokens_where_the_template_writes_them_and_the_vocabulary_has_them(tokenizer):
    template = TEMPLATES["internvl2_5"].with_marks(["<think>", "<tool_call>", "</tool_call>"])
    typed = '{"name": "<tool_call>", "arguments": {"a": "<think>"}}'
    turns = [user("<think> <tool_call>"), Message("assistant", "<think>", calls=(typed,))]
    pieces = template.render(turns, thinking=True, tools=[typed])
    marks = [piece.token for piece in pieces if isinstance(piece, Special) and "|" not in piece.token]
    in_section = ["<tool_call>", "</tool_call>"] * 2  # the sentence about them, and the example
    assert marks == ["<think>", *in_section, "<tool_call>", "</tool_call>"]
    assert to_string(pieces) == to_string(TEMPLATES["internvl2_5"].render(turns, thinking=True, tools=[typed]))
    ids = tokenizer.encode_pieces(pieces)
    assert ids.count(tokenizer.special_id("<think>")) == 1
    assert ids.count(tokenizer.special_id("<tool_call>")) == 3


def test_a_prompt_with_marks_has_the_ids_of_the_whole_string(tokenizer):
    template = TEMPLATES["internvl2_5"].with_marks(NOT_SPECIAL)
    turns = [user("a red panda"), Message("assistant", "on a tree", calls=(LOOK,)), Message("tool", "the picture")]
    pieces = template.render(turns, thinking=True, tools=[LOOK])
    assert tokenizer.encode_pieces(pieces) == tokenizer.encode_raw(to_string(pieces))


@pytest.mark.parametrize("name", ALL)
def test_endings(name):
    template = TEMPLATES[name]
    turns = [user("Hi"), Message("assistant", "It is")]
    whole, ended, going_on = (
        to_string(template.render(turns, ending=ending)) for ending in ("open", "end", "continue")
    )
    closing = template.turns["assistant"].split("{}")[1]
    assert whole == ended + template.opening
    assert ended == going_on + closing
    assert going_on.endswith("It is")


WEATHER = json.dumps(
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Gets the weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                    "format": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                    "days": {"type": ["array", "null"], "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}},
                },
                "required": ["location"],
            },
        },
    }
)
NOW = '{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}'
ASKED = [
    user("Hi"),
    Message("assistant", "I look.", calls=('{"name": "get_weather", "arguments": {"location": "上海"}}',)),
    Message("tool", "22"),
]


@pytest.mark.parametrize("kinds", [["array"] * 20, ["array", "object", *"abcdefghij"]])
def test_types_that_multiply_are_written_once_each(kinds):
    """Twenty types at each of ten levels are one and a half levels of work each, not twenty to the tenth."""
    schema = {"type": "string"}
    for _ in range(10):
        schema = {"type": kinds, "items": schema, "properties": {"a": schema}}
    tool = json.dumps({"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}})
    prompt = to_string(TEMPLATES["internvl3_5_gpt_oss"].render(ASKED, tools=[tool]))
    assert prompt.count("a?: ") <= 2**10


def test_tools_of_gpt_oss():
    """The form of openai/harmony, `docs/format.md`."""
    prompt = to_string(TEMPLATES["internvl3_5_gpt_oss"].render(ASKED, tools=[NOW, WEATHER]))
    system, developer, rest = prompt.split("<|end|>", 2)
    assert system.endswith(
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.\n"
        "Calls to these tools must go to the commentary channel: 'functions'."
    )
    assert developer == (
        "<|start|>developer<|message|># Tools\n\n## functions\n\nnamespace functions {\n\n"
        "type now = () => any;\n\n// Gets the weather.\ntype get_weather = (_: {\n"
        "// The city and state, e.g. San Francisco, CA\nlocation: string,\n"
        'format?: "celsius" | "fahrenheit", // default: celsius\ndays?: (number | string)[] | null,\n'
        "}) => any;\n\n} // namespace functions"
    )
    assert rest == (
        "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
        '{"location": "上海"}<|call|>'
        "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>22<|end|><|start|>assistant"
    )


def test_tools_of_internlm2():
    """The form of InternLM/InternLM, `chat/chat_format.md`."""
    template = TEMPLATES["internvl2_5"].with_tools(TOOL_FORMS["internlm"])
    pieces = template.render([Message("system", "Be brief."), *ASKED], tools=[NOW])
    assert to_string(pieces) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>system name=<|plugin|>\n"
        '[{"name": "now", "parameters": {"type": "object", "properties": {}}}]<|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nI look.<|action_start|><|plugin|>\n"
        '{"name": "get_weather", "parameters": {"location": "上海"}}<|action_end|><|im_end|>\n'
        "<|im_start|>environment name=<|plugin|>\n22<|im_end|>\n<|im_start|>assistant\n"
    )
    typed = Message("tool", "<|action_start|><|im_end|>")
    assert Text("\n<|action_start|><|im_end|>") in template.render([*ASKED[:2], typed])


@pytest.mark.parametrize(
    "last",
    [Message("tool", "12 degrees"), Message("assistant", "", calls=('{"name": "weather", "arguments": {}}',))],
    ids=["result", "call"],
)
def test_what_harmony_closes_in_itself_cannot_go_on(last: Message) -> None:
    """It would be left out of the prompt."""
    messages = [Message("user", "How warm is it?"), last]
    with pytest.raises(InvalidRequest, match="The last message cannot go on: calls of tools and their results"):
        TEMPLATES["internvl3_5_gpt_oss"].render(messages, ending="continue")
    whole = "".join(str(piece) for piece in TEMPLATES["internvl3_5_gpt_oss"].render(messages))
    assert ("12 degrees" if last.role == "tool" else "weather") in whole
