"""Replicas: answers of one engine, whoever gives them, and what becomes of a server when one of them dies."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.parallel.test_engine import QUESTIONS, conversations, parents, ranks_of
from tests.remote.test_supervisor import is_alive
from tests.served import PICTURES, Served, question, served
from tilewise import LLM, AsyncLLM, LLMEngine, SamplingParams, StructuredOutputsParams
from tilewise.entrypoints.beam_search import BeamSearchParams
from tilewise.errors import EngineDead, TooLong
from tilewise.types import RequestOutput

OPTIONS: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "allowed_local_media_path": str(PICTURES)}
GREEDY = SamplingParams(temperature=0, max_tokens=12, prompt_logprobs=0)
DRAWN = SamplingParams(temperature=1, max_tokens=8, n=3)
SEEDED = SamplingParams(temperature=1, max_tokens=8, seed=5)
DIGITS = SamplingParams(temperature=1, max_tokens=8, structured_outputs=StructuredOutputsParams(regex="[0-9]{3}"))


def answers(llm: LLM) -> list[Any]:
    """Of everything that a new LLM can be asked, in an order in which what draws comes between what does not."""
    outputs = llm.chat(conversations(), GREEDY, use_tqdm=False)
    outputs += llm.generate(["Say", "Count", "Go", "Say"], [DRAWN, SEEDED, DIGITS, DRAWN], use_tqdm=False)
    llm.enqueue(["What?", "Where?"], DRAWN)
    outputs += llm.wait_for_completion(use_tqdm=False)
    beams = llm.beam_search(["1 2 3"], BeamSearchParams(beam_width=2, max_tokens=4))
    streamed = [text for text, _ in llm.stream_chat(conversations()[0], SamplingParams(seed=3, max_tokens=6))]
    assert llm.counters.prompt_tokens > 0
    assert llm.reset_prefix_cache()
    tokens = [[one.token_ids for one in output.outputs] for output in outputs]
    scores = [len(output.prompt_logprobs or ()) for output in outputs]
    return [tokens, scores, [beam.tokens for beam in beams[0].sequences], "".join(streamed)]


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    with LLM("demo", **OPTIONS) as llm:
        return answers(llm)


@pytest.fixture(scope="module")
def two() -> Iterator[LLM]:
    """An LLM of two replicas, each with a draft model."""
    before = set(engines_of(os.getpid()))  # of servers that other tests share
    with LLM(
        "demo",
        data_parallel_size=2,
        speculative_config={"model": "demo", "num_speculative_tokens": 2},
        **OPTIONS,
    ) as llm:
        yield llm
    assert set(engines_of(os.getpid())) <= before


def test_answers_are_those_of_one_engine(alone: list[Any], two: LLM) -> None:
    """Before other tests use the replicas: what is drawn without a seed depends on how much was drawn before."""
    assert answers(two) == alone


@pytest.mark.slow
def test_answers_of_replicas_that_have_ranks_are_those_of_one_engine(alone: list[Any]) -> None:
    before = set(engines_of(os.getpid()))
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 2, "async_scheduling": True, "max_num_seqs": 4}
    with LLM("demo", **OPTIONS, **sizes) as llm:
        assert answers(llm) == alone
    assert set(engines_of(os.getpid())) <= before
    assert ranks_of(os.getpid()) == []


def test_replicas_are_stepped_as_one_engine(two: LLM) -> None:
    assert (two.get_world_size(), two.get_world_size(include_dp=False)) == (2, 1)
    engine = LLMEngine(two)
    for number in range(4):
        engine.add_request(f"{number}", f"Say {number}", SEEDED)
    engine.abort_request("3")
    finished = {}
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
    assert sorted(finished) == ["0", "1", "2"]
    (expected,) = two.generate(["Say 1"], SEEDED, use_tqdm=False)
    assert finished["1"].outputs[0].token_ids == expected.outputs[0].token_ids


def test_a_replica_that_dies_ends_the_call_and_the_next_one_is_answered(two: LLM) -> None:
    endless = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)

    def dying() -> None:
        for _ in two.stream_chat([{"role": "user", "content": "Count"}], endless):
            os.kill(two._loop._engines[0].pid, signal.SIGKILL)  # type: ignore[union-attr]

    with pytest.raises(EngineDead, match="Engine 0's process was ended by signal 9"):
        dying()
    outputs = two.generate(["a", "b", "c"], SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)
    assert [output.finished for output in outputs] == [True, True, True]
    with pytest.raises(TooLong):
        two.generate([{"prompt_token_ids": [5] * 600}], GREEDY, use_tqdm=False)


def test_an_event_loop_gets_the_same_from_replicas() -> None:
    """Six answers to one prompt, which both engines give, and a death that one of two calls does not notice."""
    several = SamplingParams(temperature=1, max_tokens=8, n=6)
    long = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    with LLM("demo", **OPTIONS) as llm:
        (expected,) = llm.generate(["Say"], several, use_tqdm=False)

    async def last(answers: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
        return [one async for one in answers][-1]

    with AsyncLLM("demo", data_parallel_size=2, **OPTIONS) as engine:

        async def dying() -> None:
            async for _ in engine.generate("two", long, "c"):
                (number,) = {engine._engine._places[name] for name in engine._running["c"]._request_ids}
                os.kill(engine._engine.engines[number].pid, signal.SIGKILL)

        async def main() -> list[RequestOutput | BaseException | None]:
            first = await last(engine.generate("Say", several, "a"))
            calls = last(engine.generate("one", long, "b")), dying()
            return [first, *await asyncio.gather(*calls, return_exceptions=True)]

        first, stayed, died = asyncio.run(main())
        counted = [one.counters.generation_tokens for one in engine._engine.engines]
    assert isinstance(first, RequestOutput)
    assert [one.token_ids for one in first.outputs] == [one.token_ids for one in expected.outputs]
    assert isinstance(stayed, RequestOutput)
    assert len(stayed.outputs[0].token_ids) == 200
    assert isinstance(died, EngineDead)
    assert max(counted) >= 200


def engines_of(parent: int) -> list[int]:
    """Engine processes below this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != parent and parent in parents(int(folder.name)):
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            found += [int(folder.name)] if b"tilewise.remote.begin" in command else []
    return found


def eventually(what: Callable[[], bool], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.05)
    return False


@contextmanager
def streamed(server: Served, prompt: str, lines: list[str]) -> Iterator[None]:
    """Beside an answer of 400 tokens, whose events go to `lines` until there is no server any more."""

    def read() -> None:
        answer_of = {"max_tokens": 400, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        body = {"prompt": prompt, **answer_of}
        with (
            suppress(httpx.TransportError),
            httpx.Client(timeout=120, trust_env=False) as client,
            client.stream("POST", f"{server.url}/v1/completions", json=body) as answer,
        ):
            for line in answer.iter_lines():
                lines.extend(filter(None, [line]))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert eventually(lambda: len(lines) > 3)
        yield
    finally:
        thread.join(120)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    flags = ("-dp", "2", "--dtype", "float32", "--max-model-len", "512")
    with served(*flags, environment={"VLLM_LOG_STATS_INTERVAL": "1", "VLLM_SERVER_DEV_MODE": "1"}) as server:
        yield server
        pids = [*server.engine_pids.values()]
        assert len(pids) == 2
        assert server.stop(signal.SIGINT) == 0
        assert not any(map(is_alive, pids))


def ask(server: Served, number: int) -> dict[str, Any]:
    asked = QUESTIONS[number]
    messages = question(asked["turns"][0]["question"], asked["pictures"][0])
    answer = server.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 12, "temperature": 0})
    found: dict[str, Any] = answer.json()
    assert answer.status_code == 200, found
    return found


def by_engine(server: Served, name: str) -> list[float]:
    return [server.metric(name, f'engine="{number}"') for number in range(2)]


def grown(server: Served, name: str, before: list[float]) -> list[float]:
    return [now - then for now, then in zip(by_engine(server, name), before, strict=True)]


def test_the_picture_asked_again_is_not_encoded_again(server: Served) -> None:
    before, encoded = (
        by_engine(server, "tilewise:tile_cache_hits_total"),
        by_engine(server, "tilewise:tiles_encoded_total"),
    )
    contents = {ask(server, 0)["choices"][0]["message"]["content"] for _ in range(4)}
    assert len(contents) == 1
    hits = [now - then for now, then in zip(by_engine(server, "tilewise:tile_cache_hits_total"), before, strict=True)]
    done = [now - then for now, then in zip(by_engine(server, "tilewise:tiles_encoded_total"), encoded, strict=True)]
    tiles = sum(done)
    assert sorted(hits) == [0, 3 * tiles]
    assert sorted(done) == [0, tiles]


def test_sixteen_at_once_use_both_and_each_has_its_figures(server: Served) -> None:
    before = by_engine(server, "vllm:request_success_total")

    def one(number: int) -> None:
        body = {"prompt": f"{number} is a number", "max_tokens": 20, "ignore_eos": True}
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60, trust_env=False).status_code == 200

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered = grown(server, "vllm:request_success_total", before)
    assert sum(answered) == 16
    assert min(answered) >= 5
    assert by_engine(server, "vllm:generation_tokens_total") >= [20 * count for count in answered]
    assert server.logs("Engine 000: Avg prompt throughput")
    assert server.logs("Engine 001: Avg prompt throughput")
    assert "(EngineCore_DP1 pid=" in server.log
    assert server.client.post("/reset_prefix_cache").json() == {"success": True}


def test_one_that_is_killed_costs_its_streams_alone(server: Served) -> None:
    first: list[str] = []
    second: list[str] = []
    pids = server.engine_pids
    with streamed(server, "one", first), streamed(server, "two", second):
        os.kill(pids[1], signal.SIGKILL)
        assert server.client.get("/health").status_code == 200
        assert ask(server, 1)["choices"][0]["finish_reason"] == "stop"
    broken, whole = sorted((first, second), key=lambda lines: '"error"' not in lines[-2])
    assert '"completion_tokens":400' in whole[-2]
    assert "Engine 1's process was ended by signal 9: send the request again in" in broken[-2]
    assert whole[-1] == broken[-1] == "data: [DONE]"

    def is_back() -> bool:
        assert server.client.get("/health").status_code == 200
        return by_engine(server, "tilewise:engine_up") == [1, 1] and server.engine_pids.get(1) != pids[1]

    assert eventually(is_back)
    assert server.engine_pids[0] == pids[0]
    assert by_engine(server, "tilewise:engine_restarts_total") == [0, 1]
    before = by_engine(server, "vllm:generation_tokens_total")
    with streamed(server, "three", []), streamed(server, "four", []):
        pass
    assert min(grown(server, "vllm:generation_tokens_total", before)) > 0
