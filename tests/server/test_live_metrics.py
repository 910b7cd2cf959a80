"""Metrics of a real server by the names that dashboards of production ask for; they count what vLLM's do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.served import Served
from tests.server.live import QUESTION, chat

BLOCK = 16
LONG = [5] * (2 * BLOCK + 6)


def grown(live: Served, work: Callable[[], object], *metrics: tuple[str, str]) -> list[float]:
    """By how much each metric, with a label, grows while `work` is done."""
    before = [live.metric(*metric) for metric in metrics]
    work()
    return [live.metric(*metric) - value for metric, value in zip(metrics, before, strict=True)]


@pytest.mark.parametrize(
    "name",
    [
        *("process_resident_memory_bytes", "process_virtual_memory_bytes", "process_cpu_seconds_total"),
        *("process_open_fds", "process_max_fds", "process_start_time_seconds", "python_info"),
        *("python_gc_collections_total", "http_requests_total", "http_request_duration_seconds_count"),
        *("http_request_duration_highr_seconds_count", "http_request_size_bytes_sum", "http_response_size_bytes_sum"),
    ],
)
def test_names_of_every_python_server(live: Served, name: str):
    assert chat(live).status_code == 200
    assert live.metric(name) > 0


@pytest.mark.parametrize(
    "name",
    [
        *("vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc", "vllm:lora_requests_info"),
        "vllm:num_requests_waiting_by_reason",
    ],
)
def test_gauges_of_a_server_at_rest_are_there_and_zero(live: Served, name: str):
    assert f"{name}{{" in live.client.get("/metrics").text
    assert live.metric(name) == 0


def test_tokens_are_counted_as_vllm_counts_them(live: Served):
    """Prompts whole, by source; a step without what the cache gave (`PromptTokenStats.computed` and the new tokens)."""

    def ask() -> None:
        answer = live.client.post("/v1/completions", json={"prompt": LONG, "max_tokens": 4, "ignore_eos": True})
        assert answer.status_code == 200, answer.text

    ask()
    found = grown(
        live,
        ask,
        ("vllm:prompt_tokens_total", ""),
        ("vllm:prompt_tokens_by_source_total", "local_compute"),
        ("vllm:prompt_tokens_by_source_total", "local_cache_hit"),
        ("vllm:prompt_tokens_cached_total", ""),
        ("vllm:generation_tokens_total", ""),
        ("vllm:iteration_tokens_total_sum", ""),
        ("vllm:request_prefill_kv_computed_tokens_sum", ""),
        ("vllm:gpu_prefix_cache_hits_total", ""),
        ("vllm:request_num_preemptions_count", ""),
        ("vllm:request_num_preemptions_sum", ""),
    )
    cached = 2 * BLOCK
    assert found == [
        len(LONG),
        len(LONG) - cached,
        cached,
        cached,
        4,
        len(LONG) - cached + 4,
        len(LONG) - cached,
        cached,
        1,
        0,
    ]


def test_requests_are_counted_by_route_whatever_clients_ask_for(live: Served):
    def ask() -> None:
        for number in range(20):
            live.client.get(f"/v1/models/no-such-{number}")
            live.client.get(f"/no-such-path/{number}")
            live.client.request(f"METHOD{number}", "/v1/completions")
        chat(live)
        live.client.get("/health")

    found = grown(
        live,
        ask,
        ("http_requests_total", 'handler="/v1/models/{model:path}",method="GET",status="4xx"'),
        ("http_requests_total", 'handler="none",method="GET",status="4xx"'),
        ("http_requests_total", 'method="other",status="4xx"'),
        ("http_requests_total", 'handler="/v1/chat/completions",method="POST",status="2xx"'),
        ("http_requests_total", 'handler="/health"'),
    )
    assert found == [20, 20, 20, 1, 0]
    text = live.client.get("/metrics").text
    assert "no-such" not in text
    assert "METHOD" not in text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [QUESTION], "max_tokens": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 1}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_load_balancers_are_told_of_the_load(live: Served, path: str, body: dict[str, Any], stream: bool):
    """The header of xds.data.orca.v3, as Envoy's and Google's balancers read it."""
    body = {**body, "stream": stream}

    def told(form: str) -> str | None:
        answer = live.client.post(path, json=body, headers={"endpoint-load-metrics-format": form})
        assert answer.status_code == 200, answer.text
        return answer.headers.get("endpoint-load-metrics")

    assert told("TEXT") == "TEXT named_metrics.kv_cache_usage_perc=0.0, named_metrics.num_requests_waiting=0.0"
    form, _, report = (told("json") or "").partition(" ")
    assert (form, json.loads(report)) == (
        "JSON",
        {"named_metrics": {"kv_cache_usage_perc": 0.0, "num_requests_waiting": 0.0}},
    )
    assert told("BIN") is None
    assert live.client.post(path, json=body).headers.get("endpoint-load-metrics") is None


def test_the_size_of_the_cache_is_told(live: Served):
    """`kv_cache_max_concurrency` is how many requests as long as the context there is room for, as in vLLM."""
    (line,) = [line for line in live.client.get("/metrics").text.splitlines() if line.startswith("vllm:cache_config_i")]
    told = dict(pair.split("=") for pair in line.partition("{")[2].partition("}")[0].replace('"', "").split(","))
    tokens = int(told["num_gpu_blocks"]) * int(told["block_size"])
    assert told["cache_dtype"] == "auto"
    assert (int(told["kv_cache_size_tokens"]), float(told["kv_cache_max_concurrency"])) == (tokens, tokens / 1024)
