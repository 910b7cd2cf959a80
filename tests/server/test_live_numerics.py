"""A real server whose weights are not finite in one place: one request gets an error that says so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from openai import APIError, InternalServerError, OpenAI

from tests.served import Served, served
from tests.tiny import SPECS, write_original
from tests.weights.broken import change_tensors

POISON = 77
PROMPT = [90, 91, 92]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_original(tmp_path_factory.mktemp("poisoned") / "model", SPECS["qwen2-300m"])

    def poison(tensors):
        tensors["language_model.model.embed_tokens.weight"][POISON] = float("inf")

    change_tensors(folder, poison)
    with served(str(folder), "--check-numerics", "--max-model-len", "256", "--served-model-name", "m") as running:
        yield running
        assert running.stop() == 0


def ask(server: Served, prompt: list[int], **fields):
    body = {"model": "m", "prompt": prompt, "max_tokens": 4, "ignore_eos": True, **fields}
    return server.client.post("/v1/completions", json=body)


def test_one_request_fails_and_the_next_is_answered(server: Served) -> None:
    before = server.metric("tilewise:not_finite_total", 'part="decoder"')
    answer = ask(server, [*PROMPT, POISON])
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert "NaN or infinite (decoder, step " in error["message"]
    assert "try --dtype float32" in error["message"]
    assert ask(server, PROMPT).json()["usage"]["completion_tokens"] == 4
    assert server.metric("tilewise:not_finite_total", 'part="decoder"') == before + 1
    assert server.metric("tilewise:not_finite_total", 'part="tower"') == 0
    assert server.metric("vllm:request_success_total", 'finished_reason="error"') >= 1
    assert server.metric("tilewise:engine_restarts_total") == 0


def test_a_stream_ends_with_the_error(server: Served) -> None:
    lines = [line[6:] for line in ask(server, [*PROMPT, POISON], stream=True).text.splitlines() if line]
    problems = [found for found in (json.loads(line) for line in lines if line.startswith("{")) if "error" in found]
    assert "NaN or infinite" in problems[0]["error"]["message"]


def test_one_bad_answer_of_several_ends_them_all(server: Served) -> None:
    bias = {str(POISON): 100.0}
    assert ask(server, PROMPT, n=2, logit_bias=bias).status_code == 500
    assert ask(server, PROMPT, n=2).status_code == 200


def test_clients_of_openai_see_an_error_of_the_server(server: Served) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(InternalServerError, match="NaN or infinite"):
        client.completions.create(model="m", prompt=[*PROMPT, POISON])
    with pytest.raises(APIError, match="NaN or infinite"):
        list(client.completions.create(model="m", prompt=[*PROMPT, POISON], stream=True))
