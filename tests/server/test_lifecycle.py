"""A server under load whose engine is killed, whose clients leave, and that is told to end."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import httpx
import pytest

import tilewise.server
from tests.served import PATIENCE, Served, served, until
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.server.config import ServerConfig
from tilewise.server.serve import admit, listen

LONG = {
    "messages": [{"role": "user", "content": "What is this?"}],
    "ignore_eos": True,
    "max_tokens": 1900,
    "stream": True,
}


@dataclass
class Reader:
    """One client of a stream."""

    status: int = 0
    events: list[str] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)

    def run(self, url: str, body: dict) -> Reader:
        with (
            httpx.Client(timeout=PATIENCE) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
        ):
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))
                    if len(self.events) > 3:
                        self.began.set()
        self.began.set()
        return self

    @property
    def error(self) -> dict:
        """The event before the end, if it is an error."""
        assert self.events[-1] == "[DONE]"
        return json.loads(self.events[-2])["error"]


def start_streams(server: Served, count: int, body: dict = LONG) -> tuple[list[Reader], ThreadPoolExecutor, list]:
    readers, pool = [Reader() for _ in range(count)], ThreadPoolExecutor(count)
    futures = [pool.submit(reader.run, server.url, body) for reader in readers]
    assert all(reader.began.wait(PATIENCE) for reader in readers)
    return readers, pool, futures


def all_were_told(server: Served, readers: list[Reader], pool: ThreadPoolExecutor, futures: list) -> None:
    """Wait for the end of streams and server: each stream was told that the server ends."""
    for future in futures:
        future.result(PATIENCE)
    assert all("shutting down" in reader.error["message"] for reader in readers)
    assert server.process.wait(PATIENCE) == 0
    pool.shutdown()


@contextmanager
def stopped(server: Served) -> Iterator[None]:
    """Nothing begins, goes on or ends in the engine meanwhile."""
    pid = server.engine_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ask(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={**LONG, "max_tokens": 3, "stream": False}, timeout=PATIENCE)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One for the tests until one tells it to end."""
    with served() as server:
        yield server


def test_a_client_that_leaves_frees_its_request(server: Served):
    before = server.metric("vllm:request_success_total")
    with (
        httpx.Client(timeout=PATIENCE) as client,
        client.stream("POST", f"{server.url}/v1/chat/completions", json=LONG) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        assert server.metric("vllm:num_requests_running") == 1
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    assert server.metric("vllm:request_success_total") == before + 1
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    impatient = httpx.Timeout(PATIENCE, read=0.3)
    with pytest.raises(httpx.ReadTimeout):  # it wants the whole answer, and does not wait for it
        httpx.post(f"{server.url}/v1/chat/completions", json={**LONG, "stream": False}, timeout=impatient)
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    assert ask(server.url).status_code == 200


def test_an_engine_that_hangs_shows_in_the_metrics(server: Served):
    assert server.metric("tilewise:engine_silent_seconds") == 0
    with ThreadPoolExecutor(1) as pool:
        with stopped(server):
            waiting = pool.submit(ask, server.url)
            until(lambda: server.metric("tilewise:engine_silent_seconds") > 1)
        assert waiting.result(PATIENCE).status_code == 200
    assert server.metric("tilewise:engine_silent_seconds") == 0


def test_a_port_that_is_taken_costs_no_loading_time(server: Served):
    port = server.url.rpartition(":")[2]
    second = Served("--port", port)
    assert second.process.wait(PATIENCE) == 1
    assert second.logs(f"127.0.0.1:{port} cannot be listened at (Address already in use)")
    assert "Loading weights" not in second.log


def test_an_engine_killed_under_load(server: Served):
    """Every open stream ends with an error that says so, new requests get 503, and then there is an engine again."""
    readers, pool, futures = start_streams(server, 8)
    first = server.engine_pid
    os.kill(first, signal.SIGKILL)
    for future in futures:
        future.result(PATIENCE)
    for reader in readers:
        assert reader.status == 200
        assert "was ended by signal 9: send the request again in" in reader.error["message"]
        assert reader.error["code"] == 503
    refused = ask(server.url)
    assert (refused.status_code, httpx.get(f"{server.url}/health").status_code) == (503, 503)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "ServiceUnavailableError"
    until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
    assert ask(server.url).json()["usage"]["completion_tokens"] == 3
    assert server.engine_pid != first
    assert server.metric("tilewise:engine_restarts_total") == 1
    assert server.metric("vllm:num_requests_running") == 0
    pool.shutdown()
    assert "was ended by signal 9; 8 requests are lost" in server.log


def test_told_to_end_it_aborts_what_runs(server: Served):
    readers, pool, futures = start_streams(server, 2)
    server.process.send_signal(signal.SIGTERM)
    all_were_told(server, readers, pool, futures)
    server.stop()
    assert "Shutdown initiated (timeout=0)" in server.log
    assert "Aborting 2 requests" in server.log
    assert server.lines[-1].endswith("Shutdown complete")


def test_with_patience_it_lets_them_finish():
    body = {**LONG, "max_tokens": 300}
    with served("--shutdown-timeout", "60") as server:
        readers, pool, futures = start_streams(server, 2, body)
        with stopped(server):  # else a fast machine ends before the late one comes
            server.process.send_signal(signal.SIGTERM)
            until(lambda: "Draining" in server.log)
            late = ask(server.url)
            health = httpx.get(f"{server.url}/health", timeout=PATIENCE)
        for future in futures:
            future.result(PATIENCE)
        assert all(json.loads(reader.events[-2])["choices"][0]["finish_reason"] == "length" for reader in readers)
        assert late.status_code == health.status_code == 503
        assert "shutting down" in late.json()["error"]["message"]
        assert server.process.wait(PATIENCE) == 0
        pool.shutdown()
    assert "Draining 2 in-flight requests (timeout=60s)" in server.log


def test_when_its_patience_is_at_an_end_they_are_told():
    with served("--shutdown-timeout", "0.5") as server:
        readers, pool, futures = start_streams(server, 2)
        with stopped(server):  # else the streams could end by themselves
            server.process.send_signal(signal.SIGTERM)
            wait(futures, PATIENCE)
        all_were_told(server, readers, pool, futures)
    assert "Draining 2 in-flight requests (timeout=0.5s)" in server.log
    assert "Aborting 2 requests" in server.log


@pytest.fixture(scope="module")
def small() -> Iterator[Served]:
    """One that answers two requests at a time and lets one wait, for the tests until one tells it to end."""
    with served("--shutdown-timeout", "600", "--max-num-queued-reqs", "1", "--max-num-seqs", "2") as server:
        yield server


def test_one_request_too_many(small: Served):
    _, pool, futures = start_streams(small, 2)
    second = ThreadPoolExecutor(1)
    waiting = second.submit(ask, small.url)
    until(lambda: small.metric("vllm:num_requests_waiting") == 1)
    with stopped(small):
        refused = ask(small.url)
    assert refused.status_code == 429
    assert refused.headers["Retry-After"]
    assert "the limit is 1" in refused.json()["error"]["message"]
    assert waiting.result(PATIENCE).status_code == 200
    assert [future.result(PATIENCE).events[-1] for future in futures] == ["[DONE]"] * 2
    pool.shutdown()
    second.shutdown()


def test_told_twice_to_end_it_waits_for_nobody(small: Served):
    readers, pool, futures = start_streams(small, 2)
    with stopped(small):  # else the streams could end by themselves
        small.process.send_signal(signal.SIGTERM)
        until(lambda: "Draining" in small.log)
        small.process.send_signal(signal.SIGTERM)
        wait(futures, PATIENCE)
    all_were_told(small, readers, pool, futures)
    small.stop()
    assert "Shutdown was asked for again" in small.log


@pytest.fixture(scope="module")
def frail() -> Iterator[Served]:
    """One whose engine is not started again."""
    with served("--request-timeout", "2", "--max-engine-restarts", "0") as server:
        yield server


def test_a_request_that_takes_too_long(frail: Served):
    _, pool, futures = start_streams(frail, 1)
    with stopped(frail):
        error = futures[0].result(PATIENCE).error
    assert error["code"] == 504
    assert "deadline of 2 seconds" in error["message"]
    assert ask(frail.url).status_code == 200
    pool.shutdown()


def test_an_engine_that_keeps_dying_ends_the_server(frail: Served):
    os.kill(frail.engine_pid, signal.SIGKILL)
    assert frail.process.wait(PATIENCE) == 1
    frail.stop()
    assert "is given up" in frail.log


def test_a_unix_socket(tmp_path):
    path = tmp_path / "socket"
    server = Served("--uds", str(path))
    try:
        until(lambda: "Uvicorn running on unix socket" in server.log)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://here") as client:
            assert client.get("/health").status_code == 200
            assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
    finally:
        assert server.stop() == 0
    assert not path.exists()


def test_of_two_servers_that_load_at_one_time_the_second_is_refused():
    """A port can be bound twice as long as nobody is let in."""
    config = ServerConfig(host="127.0.0.1", port=0)
    with listen(config) as first:
        config = replace(config, port=first.getsockname()[1])
        with listen(config) as second:
            admit(first, config)
            with pytest.raises(InvalidConfig, match=f"{config.port} cannot be listened at .* choose another port"):
                admit(second, config)


def test_a_server_that_cannot_listen_leaves_the_search_for_garbage_on():
    """It is off while libraries are loaded, and then leaves them out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(host="127.0.0.1", port=taken.getsockname()[1])
        gc.unfreeze()
        try:
            with pytest.raises(InvalidConfig, match="cannot be listened at"):
                tilewise.server.run(EngineConfig(model="demo"), config)
            assert gc.isenabled()
            assert gc.get_freeze_count() > 0
        finally:
            gc.unfreeze()
