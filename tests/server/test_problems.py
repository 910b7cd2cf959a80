"""Errors as clients see them."""

import pytest
from pydantic import ValidationError

from tests.server.asking import SERVED, ask
from tilewise.errors import DownloadFailed, EngineStuck, InvalidMedia, InvalidRequest, TooLong, UnknownModel
from tilewise.ignored import Ignored
from tilewise.sampling_params import SamplingParams
from tilewise.server.chat.call import chat_call
from tilewise.server.problems import Problem


def body(error: BaseException) -> dict:
    return Problem.of(error).body["error"]


def raised(call) -> BaseException:
    with pytest.raises((ValidationError, InvalidRequest)) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("a"), 400, "BadRequestError"),
        (InvalidMedia("a"), 400, "BadRequestError"),
        (UnknownModel("a"), 404, "NotFoundError"),
        (DownloadFailed("a"), 503, "ServiceUnavailableError"),
        (EngineStuck("a"), 500, "InternalServerError"),
        (RuntimeError("a"), 500, "InternalServerError"),
    ],
)
def test_status_and_type(error, status, kind):
    problem = Problem.of(error)
    assert problem.status == status
    assert (problem.body["error"]["type"], problem.body["error"]["code"]) == (kind, status)


def test_routing_errors_have_the_phrase_for_a_type():
    assert Problem(405, "Method Not Allowed").body["error"]["type"] == "Method Not Allowed"


def test_the_unknown_model():
    found = body(raised_unknown())
    assert found["message"].startswith("The model `gpt-4` does not exist.")
    assert (found["type"], found["param"], found["code"]) == ("NotFoundError", "model", 404)


def raised_unknown() -> UnknownModel:
    with pytest.raises(UnknownModel) as caught:
        ask(model="gpt-4")
    return caught.value


def test_a_prompt_that_is_too_long_has_the_sentences_that_clients_read():
    found = body(TooLong("Use fewer pictures.", prompt_tokens=5020, limit=4096))
    assert found["message"] == (
        "This model's maximum context length is 4096 tokens. However, you requested 1 output tokens and your prompt "
        "contains 5020 input tokens, for a total of 5021 tokens. Please reduce the length of the input prompt or the "
        "number of requested output tokens. Use fewer pictures."
    )
    found = body(TooLong("Ask for less.", prompt_tokens=20, limit=4096, output_tokens=5000))
    assert "requested 5000 output tokens" in found["message"]
    assert "for a total of 5020 tokens" in found["message"]
    assert (found["param"], found["code"]) == ("max_tokens", 400)


def test_what_an_unexpected_error_says_stays_here():
    assert "secret" not in str(body(RuntimeError("secret at 0x7f00")))


def test_addresses_are_stripped():
    error = InvalidRequest("cannot identify image file <_io.BytesIO object at 0x7f12ab34cd50>, and 0x10 stays")
    assert body(error)["message"] == "cannot identify image file <_io.BytesIO object>, and 0x10 stays"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        (
            {"temperature": "hot"},
            "temperature",
            "temperature: should be a valid number, unable to parse string as a number, got 'hot'.",
        ),
        ({"stop": [1]}, "stop", "stop: should be a valid string"),
        ({"stop": ["a", 1]}, "stop", "stop: should be a valid string"),
        ({"messages": ["Hi"]}, "messages[0]", "messages[0]: should be a valid dictionary, got 'Hi'."),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "field required."),
        (
            {"stream": True, "stream_options": {"include_usag": True}},
            "stream_options.include_usag",
            "mean include_usage?",
        ),
        ({"tool_choice": {"type": "tool"}}, "tool_choice", "tool_choice: "),
        ({"temperature": -1.0}, "temperature", "temperature must be a number >= 0, got -1.0."),
        ({"stop": [str(number) for number in range(65)]}, "stop", "at most 64 entries, got 65"),
        ({"n": 2, "temperature": 0}, "n", "n must be 1 when using greedy sampling"),
        ({"max_tokns": 2}, "max_tokns", "has no field 'max_tokns'. Did you mean max_tokens?"),
    ],
)
def test_the_field_is_named(fields, param, says):
    found = body(raised(lambda: ask(**fields)))
    assert found["param"] == param
    assert says in found["message"]
    assert found["code"] == 400


def test_a_missing_field():
    found = body(raised(lambda: chat_call({}, SERVED, Ignored())))
    assert (found["param"], found["message"]) == ("messages", "messages: field required.")


def test_sampling_errors_name_their_field_without_a_server():
    assert body(raised(lambda: SamplingParams(min_tokens=20, max_tokens=10)))["param"] == "min_tokens"
