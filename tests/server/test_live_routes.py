"""Routes beside those of generation, and sentences for those that are not here."""

from __future__ import annotations

import json

import pytest

from tests.served import Served, question, served
from tests.server.live import QUESTION, chat, error_of

SALTS = iter(range(100))
ABSENT = {
    "/v1/embeddings": "make no embeddings",
    "/v1/rerank": "make no scores",
    "/v2/rerank": "make no scores",
    "/rerank": "make no scores",
    "/score": "make no scores",
    "/pooling": "make no scores",
    "/classify": "make no scores",
    "/v1/messages/batches": "tilewise run-batch",
    "/v1/load_lora_adapter": "An adapter is merged as the model is loaded, by --adapter",
    "/v1/unload_lora_adapter": "An adapter is merged as the model is loaded, by --adapter",
    "/v1/audio/transcriptions": "Sound is not understood",
    "/v1/audio/speech": "Sound is not understood",
    "/v1/images/generations": "make no pictures",
    "/v1/files": "URLs or data URLs",
    "/v1/files/file-1/content": "URLs or data URLs",
    "/v1/batches": "tilewise run-batch",
    "/v1/fine_tuning/jobs": "not trained here",
    "/v1/moderations": "no moderation model",
    "/v1/assistants": "whole conversations",
    "/completion": "/v1/completions",
    "/infill": "/v1/completions",
    "/chat/completions": "/v1/chat/completions",
    "/v1/v1/chat/completions": "/v1 twice",
    "/api/chat": "Ollama",
    "/api/generate": "Ollama",
    "/generate": "/v1/completions",
    "/tokenizer_info": "--enable-tokenizer-info-endpoint",
    "/reset_prefix_cache": "VLLM_SERVER_DEV_MODE=1",
    "/server_info": "VLLM_SERVER_DEV_MODE=1",
    "/v1": "/v1/models",
    "/": "/v1/models",
    "/v1/chat/completionz": "Did you mean /v1/chat/completions?",
}


@pytest.mark.parametrize("path", ABSENT)
def test_a_path_that_is_not_here_says_what_is(live: Served, path: str):
    for method in ("GET", "POST"):
        error = error_of(live.client.request(method, path), 404)
        assert error["message"].startswith(f"Not Found: {path} is not served.")
        assert ABSENT[path] in error["message"]
        assert error["type"] == "NotFoundError"


@pytest.mark.parametrize(("path", "says"), [("input_tokens", "POST /tokenize"), ("compact", "not shortened here")])
def test_a_path_that_only_looks_like_a_response_is_not_here(live: Served, path: str, says: str):
    error = error_of(live.client.post(f"/v1/responses/{path}", json={"input": "Hi"}), 404)
    assert error["message"].startswith(f"Not Found: /v1/responses/{path} is not served.")
    assert says in error["message"]


def test_a_long_path_is_not_repeated(live: Served):
    assert len(error_of(live.client.get("/" + "a" * 5000), 404)["message"]) < 250


@pytest.mark.parametrize(
    ("method", "path", "methods"),
    [("GET", "/v1/completions", "POST"), ("DELETE", "/ping", "GET, POST"), ("POST", "/v1/models/demo", "GET")],
)
def test_a_method_that_is_not_here_says_which_are(live: Served, method: str, path: str, methods: str):
    answer = live.client.request(method, path)
    assert error_of(answer, 405)["message"] == f"Method Not Allowed: {path} takes {methods}, got {method}."
    assert answer.headers["Allow"] == methods


def test_a_model_by_its_name(live: Served):
    listed = live.client.get("/v1/models").json()["data"]
    assert live.client.get("/v1/models/demo").json() == listed[0]
    assert error_of(live.client.get("/v1/models/org/other"), 404)["param"] == "model"


@pytest.fixture(scope="module")
def equipped():
    """A server with all that has to be asked for."""
    names = ("--served-model-name", "OpenGVLab/InternVL3-1B", "demo")
    flags = ("--enable-tokenizer-info-endpoint", "--enable-per-request-metrics")
    with served("--max-model-len", "1024", *names, *flags, environment={"VLLM_SERVER_DEV_MODE": "1"}) as server:
        yield server


def test_a_model_whose_name_has_a_slash(equipped: Served):
    for name in ("OpenGVLab/InternVL3-1B", "OpenGVLab%2FInternVL3-1B", "demo"):
        answer = equipped.client.get(f"/v1/models/{name}")
        assert answer.status_code == 200
        assert answer.json()["id"] == name.replace("%2F", "/")


def test_what_the_tokenizer_is(equipped: Served):
    found = equipped.client.get("/tokenizer_info").json()
    assert isinstance(found["tokenizer_class"], str)
    assert not {"vocab_file", "merges_file", "name_or_path"} & set(found)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_times_of_a_request_stand_in_its_answer(equipped: Served, path: str, stream: bool):
    body = {"messages": [QUESTION]} if "chat" in path else {"prompt": "a"}
    body |= {"max_tokens": 3, "ignore_eos": True, "stream": stream}
    answer = equipped.client.post(
        path, json={**body, **({"stream_options": {"include_usage": True}} if stream else {})}
    )
    found = events(answer.text)[-1] if stream else answer.json()
    times = found["metrics"]
    assert set(times) == {
        *("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second")
    }
    assert all(value >= 0 for value in times.values())
    assert times["mean_itl_ms"] == pytest.approx(times["generation_time_ms"] / 2)
    spent = times["time_to_first_token_ms"] + times["generation_time_ms"]
    assert times["tokens_per_second"] == pytest.approx(3000 / spent)
    if not stream:
        assert "metrics" not in equipped.client.post(path, json={**body, "n": 2, "temperature": 1}).json()


def test_caches_are_emptied_in_the_engine_too(equipped: Served):
    body = {"prompt": [7] * 64, "max_tokens": 1}

    def cached() -> int:
        usage = equipped.client.post("/v1/completions", json=body).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    cached()
    assert cached() == 48
    assert equipped.client.post("/reset_prefix_cache").json() == {"success": True}
    assert cached() == 0
    assert cached() == 48


def test_running_requests_are_not_reset(equipped: Served):
    refused = equipped.client.post("/reset_prefix_cache?reset_running_requests=true")
    assert "reset_running_requests" in error_of(refused)["message"]


@pytest.mark.parametrize(
    ("path", "metric"), [("/reset_encoder_cache", "tilewise:tiles_encoded_total"), ("/reset_mm_cache", "")]
)
def test_pictures_are_forgotten(equipped: Served, path: str, metric: str):
    def seen() -> tuple[float, float]:
        body = {
            "messages": question("What is it?", "chinese_question.png"),
            "max_tokens": 1,
            "cache_salt": str(next(SALTS)),
        }
        before = equipped.metric("tilewise:tiles_encoded_total"), equipped.metric("vllm:mm_cache_hits_total")
        assert equipped.client.post("/v1/chat/completions", json=body).status_code == 200
        after = equipped.metric("tilewise:tiles_encoded_total"), equipped.metric("vllm:mm_cache_hits_total")
        return after[0] - before[0], after[1] - before[1]

    seen()
    assert seen() == (0, 1)
    assert equipped.client.post(path).json() == {"success": True}
    encoded, hits = seen()
    assert (encoded > 0, hits) == ((True, 1) if metric else (False, 0))


def test_what_a_server_was_started_with(equipped: Served):
    found = equipped.client.get("/server_info?config_format=json").json()
    assert found["vllm_config"]["engine"]["max_model_len"] == 1024
    assert found["vllm_env"]["VLLM_SERVER_DEV_MODE"] == "1"
    assert "api_key" not in found["vllm_config"]["server"]
    assert isinstance(equipped.client.get("/server_info").json()["vllm_config"], str)


def test_sagemaker_has_one_route_for_all(live: Served):
    chatted = live.client.post("/invocations", json={"messages": [QUESTION], "max_tokens": 2, "temperature": 0})
    assert chatted.json()["choices"] == chat(live, temperature=0).json()["choices"]
    body = {"prompt": "The circle", "max_tokens": 2, "temperature": 0}
    completed = live.client.post("/invocations", json=body)
    assert completed.json()["choices"] == live.client.post("/v1/completions", json=body).json()["choices"]
    streamed = live.client.post("/invocations", json={**body, "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert "messages" in error_of(live.client.post("/invocations", json={"inputs": "a"}))["message"]


def test_conversations_in_one_body(live: Served):
    texts = ["What is this?", "What is that?", "Name a colour."]
    conversations = [[{"role": "user", "content": text}] for text in texts]
    asked = {"max_tokens": 4, "temperature": 0}
    answer = live.client.post("/v1/chat/completions/batch", json={"messages": conversations, **asked})
    alone = [chat(live, messages=messages, **asked).json() for messages in conversations]
    assert answer.status_code == 200, answer.text
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2]
    assert [choice["message"] for choice in answer.json()["choices"]] == [one["choices"][0]["message"] for one in alone]
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert answer.json()["usage"][count] == sum(one["usage"][count] for one in alone)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [[]]},
        {"messages": [QUESTION]},
        {"messages": [[QUESTION]] * 1025},
        {"n": 2},
        {"stream": True},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "auto"},
    ],
)
def test_what_a_batch_cannot_have(live: Served, fields: dict):
    body = {"messages": [[QUESTION]], **fields}
    assert error_of(live.client.post("/v1/chat/completions/batch", json=body))["param"] == next(iter(fields))


def events(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]
