"""Messages as clients send them, to those that the templates take."""

import pytest

from tests.server.asking import PICTURE
from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.inputs.media.reader import MediaPart
from tilewise.inputs.messages import ParsedMessage, parse_messages
from tilewise.server.body import UnknownFields
from tilewise.server.messages import RequestRules

URL = PICTURE["image_url"]["url"]
PLACE = "messages[0].content[0]"
SEEN = MediaPart(URL, "image", where=PLACE)
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def read(*messages):
    return list(parse_messages(messages, RequestRules(UnknownFields(Ignored()))))


@pytest.mark.parametrize(
    "part",
    [
        "Hi",
        {"type": "text", "text": "Hi"},
        {"text": "Hi"},
        {"type": "input_text", "text": "Hi"},
        {"type": "output_text", "text": "Hi", "annotations": []},
        {"type": "refusal", "refusal": "Hi"},
    ],
)
def test_parts_of_text(part):
    assert read({"role": "user", "content": [part]})[0].parts == ["Hi"]


@pytest.mark.parametrize(
    ("part", "becomes"),
    [
        (PICTURE, SEEN),
        (
            {"type": "image_url", "image_url": {"url": URL, "detail": "low"}, "uuid": "x"},
            MediaPart(URL, "image", "x", "low", where=PLACE),
        ),
        ({"type": "image_url", "uuid": "x", "image_url": None}, MediaPart(None, "image", "x", where=PLACE)),
        ({"image_url": URL}, SEEN),
        (
            {"type": "input_image", "image_url": URL, "detail": "high"},
            MediaPart(URL, "image", detail="high", where=PLACE),
        ),
        ({"type": "video_url", "video_url": {"url": URL}}, MediaPart(URL, "video", where=PLACE)),
    ],
)
def test_parts_of_media(part, becomes):
    (message,) = read({"role": "user", "content": [part]})
    assert [*message.images, *message.videos] == [becomes]


def test_thinking_of_earlier_answers_is_no_part_of_the_prompt():
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, "A."], "reasoning": "Hm."}
    assert read(thought)[0].parts == ["A."]


def test_what_an_answer_of_ours_holds_can_be_sent_back():
    answer = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [CALL],
        "reasoning": None,
        "reasoning_content": None,
    }
    result = {"role": "tool", "tool_call_id": "1", "name": "look", "content": "a wall"}
    assert read(answer, result) == [
        ParsedMessage("assistant", [""], calls=('{"name": "look", "arguments": {}}',)),
        ParsedMessage("tool", ["a wall"]),
    ]


def test_developers_are_the_system():
    assert read({"role": "developer", "content": "Be brief."})[0].role == "system"


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        ({"content": "a"}, "messages[0].role", "must be one of system, user, assistant, developer, tool, or a name"),
        ({"role": "function", "content": "a"}, "messages[0].role", "role must be one of"),
        ({"role": ["user"], "content": "a"}, "messages[0].role", "role must be one of"),
        ({"role": "user"}, "messages[0].content", "needs content"),
        ({"role": "user", "content": 1}, "messages[0].content", "must be a text or a list of parts, got int"),
        ({"role": "user", "content": [1]}, "messages[0].content[0]", "must be a text or an object, got int"),
        ({"role": "user", "contents": "a"}, "messages[0].contents", "Did you mean content?"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[0].tool_calls", "has no 'tool_calls'"),
        ({"role": "assistant", "function_call": {"a": 1}}, "messages[0].function_call", "its successor is tool_calls"),
        ({"role": "user", "content": [{"type": "image"}]}, "messages[0].content[0]", "Did you mean image_url?"),
        ({"role": "assistant", "tool_calls": ""}, "messages[0].tool_calls", "tool_calls must be a list, got str"),
        ({"role": "assistant", "tool_calls": [1]}, "messages[0].tool_calls[0]", "must be an object of type function"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "messages[0].tool_calls[0]", "of type fun"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": 1}]}, "messages[0].tool_calls[0]", "id must be a text"),
        ({"role": "user", "content": [{"type": "", "text": "a"}]}, "messages[0].content[0]", "type must be one of"),
        ({"role": "user", "content": [{"type": {"a": 1}}]}, "messages[0].content[0]", "type must be one of"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]", "text must be a string"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0]", "hear nothing"),
        ({"role": "user", "content": [{"type": "image_embeds"}]}, "messages[0].content[0]", "a file of a tensor in ba"),
        ({"role": "user", "content": [{"type": "video_embeds"}]}, "messages[0].content[0]", "send video_url"),
        ({"role": "user", "content": [{"type": "image_pil"}]}, "messages[0].content[0]", "it is for programs"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": None}]},
         "messages[0].content[0]", "needs a URL, got NoneType; or a uuid of media that were sent before"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": 1}]}, "messages[0].tool_calls[0]", "with a name"),
        ({"role": "user", "content": [{"type": "image_url", "uuid": ""}]}, "messages[0].content[0]", "uuid must be a"),
        ({"role": "user", "content": [{"image_url": URL, "max_dynamic_patch": 0}]},
         "messages[0].content[0]", "max_dynamic_patch must be a whole number from 1 on, got 0"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL, "detail": "most"}}]},
         "messages[0].content[0]", "detail must be one of auto, low, medium, high, original, got 'most'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(message, param, says):
    with pytest.raises(InvalidField) as caught:
        read(message)
    assert caught.value.param == param
    assert says in str(caught.value)


def test_no_messages():
    with pytest.raises(InvalidField, match="messages is empty"):
        read()
