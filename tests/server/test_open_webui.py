"""What Open WebUI 0.12.4 sends to a server, and what it reads of the answers.

The calls are those which its page and its own API caused at a connection of type Chat Completions and at one of type
Responses. Its prompts for titles and the like are shortened here; what they ask for is the same.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.served import PICTURES, Served, served
from tilewise.sse import read_events

KEY = "a-key"
USER_AGENT = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate, br", "User-Agent": "Python/3.11 aiohttp/3.14.5"}
SENT = {**USER_AGENT, "Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
PICTURE = "data:image/png;base64," + base64.b64encode((PICTURES / "reading_text.png").read_bytes()).decode()
FILE = '<file type="file" id="fafcc02a" url="fafcc02a" content_type="image/png" name="reading_text.png"/>'
ATTACHED = {"type": "text", "text": f"<attached_files>\n{FILE}\n</attached_files>\n\n"}
"""The text that comes before a question whose model is offered tools for files."""
SHOWN = [{"type": "text", "text": "What is the word?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
TURNS = [
    {"role": "user", "content": SHOWN},
    {"role": "assistant", "content": "cat"},
    {"role": "user", "content": "Read the number."},
]
BRIEF = {"role": "system", "content": "Be brief."}
HISTORY = "### Chat History:\n<chat_history>\nUSER: What is the word?\nASSISTANT: cat\n</chat_history>"
WANTED = {
    "title": '### Task:\nGenerate a concise title.\nJSON format: { "title": "your concise title here" }\n' + HISTORY,
    "follow-ups": '### Task:\nPredict 3-5 useful messages.\nJSON format: { "follow_ups": ["1", "2"] }\n' + HISTORY,
    "tags": '### Task:\nGenerate 1-3 broad tags.\nJSON format: { "tags": ["tag1", "tag2"] }\n' + HISTORY,
    "emoji": "Reflect the speaker's likely facial expression (e.g., 😊, 😢).\n\nMessage: ```What is the word?```",
    "search": '### Task:\nGenerate search queries: { "queries": ["query1"] }\n' + HISTORY + "\n",
    "typing": "### Task:\nContinue the text in `<text>`.\n<type>search query</type>  \n<text>What is</text>  \n",
    "picture": '### Task:\nGenerate a detailed prompt: { "prompt": "Your description." }\n' + HISTORY,
}
"""Tasks that Open WebUI gives the model in passing, each as one message of the user's."""
MOST = {"title": {"max_tokens": 1000}, "emoji": {"max_tokens": 4}}
CONTROLS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "max_tokens": 5,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "seed": 3,
    "stop": ["\n"],
    "reasoning_effort": "low",
    "logit_bias": {"5": 10},
}
OLLAMA = {"num_ctx": 4096, "num_batch": 512, "keep_alive": "5m", "use_mmap": True, "num_gpu": 1, "think": True}
"""Options of the same panel that are for Ollama."""
DAYS = {"default": 0, "description": "Number of days to subtract from current time (default: 0)", "type": "integer"}
QUESTIONS = {"description": "1-3", "type": "array", "items": {"additionalProperties": True, "type": "object"}}
CLOCK, *_ = TOOLS = [
    {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}
    for name, about, schema in (
        ("get_current_timestamp", "Get the current time.", {"properties": {}, "type": "object"}),
        ("calculate_timestamp", 'Examples: "a day ago"', {"properties": {"days_ago": DAYS}, "type": "object"}),
        ("ask_user", "Ask.", {"properties": {"questions": QUESTIONS}, "required": ["questions"], "type": "object"}),
    )
]
"""Some of the 36 tools of its own that it offers to each model, unless they are turned off."""
CLOCK_CHOSEN = {"type": "function", "function": {"name": "get_current_timestamp"}}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("--served-model-name", "demo", "--api-key", KEY, "--enable-auto-tool-choice") as running:
        yield running


def post(server: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    """An answer to bytes of JSON, which is how bodies come."""
    return server.client.post(path, content=json.dumps({"model": "demo", **body}).encode(), headers=SENT)


def chat(server: Served, **body: Any) -> httpx.Response:
    return post(server, "/v1/chat/completions", body)


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks before `[DONE]`: it takes an answer as a stream by its type alone."""
    assert answer.status_code == 200, answer.text
    assert "text/event-stream" in answer.headers["Content-Type"]
    *events, done = read_events([answer.content])
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def deltas(answer: httpx.Response) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(answer) if chunk["choices"]]


def text_of(answer: httpx.Response) -> str:
    return "".join(delta.get("content") or "" for delta in deltas(answer))


def read_message(answer: httpx.Response) -> str:
    """The text which it goes through for a JSON object: the reasoning, where there is no content."""
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    found = choice["message"].get("content") or choice["message"].get("reasoning_content", "")
    assert isinstance(found, str)
    return found


def test_a_connection_is_verified(server: Served):
    """Open WebUI lists models by the same request, and would take `name` before `id`."""
    answer = server.client.get("/v1/models", headers={**USER_AGENT, "Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    assert [model["id"] for model in answer.json()["data"]] == ["demo"]
    assert not any("name" in model or "pipeline" in model for model in answer.json()["data"])


@pytest.mark.parametrize("headers", [USER_AGENT, {**USER_AGENT, "Authorization": "Bearer another"}])
def test_a_wrong_key_is_told(server: Served, headers: dict[str, str]):
    """Open WebUI hands status and body on to its page."""
    answer = server.client.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "Unauthorized")


@pytest.mark.parametrize("content", [SHOWN, [ATTACHED, *SHOWN]])
def test_a_question_about_a_picture(server: Served, content: list[dict[str, Any]]):
    answer = chat(server, stream=True, messages=[{"role": "user", "content": content}])
    assert text_of(answer) == "cat"


@pytest.mark.parametrize("system", [[], [BRIEF]])
def test_a_second_turn(server: Served, system: list[dict[str, Any]]):
    assert text_of(chat(server, stream=True, messages=[*system, *TURNS])) == "388"


def test_usage_comes_where_the_model_is_said_to_have_it(server: Served):
    asked = {"messages": TURNS, "stream_options": {"include_usage": True}}
    *before, last = chunks(chat(server, stream=True, **asked))
    assert last["choices"] == []
    assert all(last["usage"][name] > 0 for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    assert not any(chunk.get("usage") for chunk in before)


def test_an_answer_that_is_not_streamed(server: Served):
    answer = chat(server, stream=False, messages=TURNS)
    assert read_message(answer) == "388"
    assert answer.json()["usage"]["total_tokens"] > 0


def test_an_answer_is_gone_on_with(server: Served):
    """Its button Continue sends the answer so far as the last message."""
    answer = chat(server, stream=True, messages=[*TURNS, {"role": "assistant", "content": "3"}])
    assert chunks(answer)[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("options", [CONTROLS, OLLAMA])
def test_controls_of_a_chat(server: Served, options: dict[str, Any]):
    *_, last = chunks(chat(server, stream=True, messages=TURNS, **options))
    assert last["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_control_by_ollamas_name_is_refused_with_its_name_here(server: Served):
    answer = chat(server, stream=True, messages=TURNS, repeat_penalty=1.1)
    assert answer.status_code == 400
    assert "repetition_penalty" in answer.json()["error"]["message"]


@pytest.mark.parametrize("task", WANTED)
def test_what_is_asked_in_passing(server: Served, task: str):
    """The demo model knows no such task; what counts is that each answer can be read."""
    messages = [{"role": "user", "content": WANTED[task]}]
    read_message(chat(server, messages=messages, stream=False, **MOST.get(task, {})))


def test_an_answer_without_text_can_be_read(server: Served):
    """Open WebUI looks for tags in the reasoning where the content is empty, and its page shows an error over null."""
    answer = chat(server, messages=TURNS, stream=False, stop=["3"])
    assert answer.json()["choices"][0]["message"]["content"] == ""
    assert read_message(answer) == ""


def test_a_title_is_read_out_of_its_json(server: Served):
    """A model that obeys is played by a form that it has to keep to."""
    schema = {"type": "object", "properties": {"title": {"enum": ["A Cat"]}}, "required": ["title"]}
    messages = [{"role": "user", "content": WANTED["title"]}]
    form = {"type": "json_schema", "json_schema": {"name": "title", "schema": schema}}
    said = read_message(chat(server, messages=messages, stream=False, max_tokens=1000, response_format=form))
    assert json.loads(said[said.find("{") : said.rfind("}") + 1]) == {"title": "A Cat"}


def test_answers_are_merged(server: Served):
    text = 'You have been provided with responses: """a cat"""\n\n"""a dog"""'
    deltas(chat(server, stream=True, messages=[{"role": "user", "content": text}]))


def test_its_own_tools_need_a_flag_which_is_named(live: Served):
    """The page shows the sentence in place of an answer."""
    answer = chat(live, stream=True, messages=TURNS, tools=TOOLS)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "--enable-auto-tool-choice" in message
    assert "send no tools" in message


def test_a_model_may_leave_its_tools_alone(server: Served):
    answer = chat(server, stream=True, messages=[{"role": "user", "content": [ATTACHED, *SHOWN]}], tools=TOOLS)
    assert chunks(answer)[-1]["choices"][0]["finish_reason"] in ("stop", "tool_calls")


def test_a_tool_is_called_and_its_result_read(server: Served):
    """Open WebUI joins a call's pieces by their index, runs it, and asks again with the result."""
    asked = {"tools": TOOLS, "tool_choice": CLOCK_CHOSEN, "stream": True}
    calls = [call for delta in deltas(chat(server, messages=TURNS, **asked)) for call in delta.get("tool_calls", [])]
    assert {call["index"] for call in calls} == {0}
    named = calls[0]
    assert named["id"]
    assert named["function"]["name"] == CLOCK["function"]["name"]
    arguments = "".join(call["function"].get("arguments", "") for call in calls)
    assert json.loads(arguments) == {}
    made = {"id": named["id"], "type": "function", "function": {"name": "get_current_timestamp", "arguments": "{}"}}
    after = [
        {"role": "assistant", "content": "", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": named["id"], "content": '{"current_timestamp":1795993738}'},
    ]
    deltas(chat(server, messages=[*TURNS, *after], tools=TOOLS, stream=True))


ITEMS = [
    {"type": "message", "role": role, "content": content}
    for role, content in (
        (
            "user",
            [
                {"type": "input_text", "text": "What is the word?"},
                {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
            ],
        ),
        ("assistant", [{"type": "output_text", "text": "cat"}]),
        ("user", [{"type": "input_text", "text": "Read the number."}]),
    )
]


def test_a_connection_of_type_responses(server: Served):
    answer = post(server, "/v1/responses", {"stream": False, "input": ITEMS, "instructions": "Be brief."})
    assert answer.status_code == 200, answer.text
    parts = [part for item in answer.json()["output"] if item["type"] == "message" for part in item["content"]]
    assert [part["text"] for part in parts if part["type"] == "output_text"] == ["388"]
    assert answer.json()["usage"]["total_tokens"] > 0


def test_a_stream_of_a_connection_of_type_responses(server: Served):
    controls = {"temperature": 0, "seed": 1, "max_output_tokens": 5}
    answer = post(server, "/v1/responses", {"stream": True, "input": ITEMS, **controls})
    assert "text/event-stream" in answer.headers["Content-Type"]
    events = [json.loads(event) for event in read_events([answer.content])]
    said = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(said) == "388"
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["usage"]["output_tokens"] > 0
