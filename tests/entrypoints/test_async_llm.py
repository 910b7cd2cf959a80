"""AsyncLLM over a real engine in a process of its own, and LLMEngine: results as they come, aborts, deaths, ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time

import pytest

from tests.tiny import SPECS, write_original
from tilewise import LLM, AsyncEngineArgs, AsyncLLM, EngineArgs, LLMEngine, SamplingParams
from tilewise.engine.core import EngineCore
from tilewise.errors import EngineDead, InvalidConfig, InvalidField, InvalidRequest, TooLong, UnknownOption
from tilewise.remote.engine import Item, Stream
from tilewise.sampling_params import RequestOutputKind
from tilewise.types import Request

OPTIONS = {"max_model_len": 512, "dtype": "float32"}
FREE = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = FREE.with_(max_tokens=400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


@pytest.fixture(scope="module")
def expected(folder):
    with LLM(str(folder), **OPTIONS) as llm:
        return llm.generate("the hen", FREE)[0].outputs[0]


@pytest.fixture(scope="module")
def engine(folder):
    with AsyncLLM.from_engine_args(AsyncEngineArgs(str(folder), **OPTIONS)) as engine:
        yield engine


def collect(engine, params, request_id="a", prompt="the hen", **options):
    async def main():
        return [output async for output in engine.generate(prompt, params, request_id, **options)]

    return asyncio.run(main())


def test_results_are_whole_answers_so_far(engine, expected):
    results = collect(engine, FREE)
    texts = [result.outputs[0].text for result in results]
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(texts))
    assert [len(result.outputs[0].token_ids) for result in results] == sorted(
        len(result.outputs[0].token_ids) for result in results
    )
    assert (results[-1].outputs[0].token_ids, texts[-1]) == (expected.token_ids, expected.text)
    assert [result.finished for result in results] == [False] * (len(results) - 1) + [True]
    assert {result.request_id for result in results} == {"a"}


def test_or_what_is_new_or_the_last_one(engine, expected):
    new = [result.outputs[0] for result in collect(engine, FREE.with_(output_kind=RequestOutputKind.DELTA, logprobs=1))]
    assert "".join(answer.text for answer in new) == expected.text
    assert [token for answer in new for token in answer.token_ids] == expected.token_ids
    assert [len(answer.logprobs) for answer in new] == [len(answer.token_ids) for answer in new]
    (last,) = collect(engine, FREE.with_(output_kind=RequestOutputKind.FINAL_ONLY))
    assert (last.outputs[0].token_ids, last.finished) == (expected.token_ids, True)
    gathered = collect(engine, FREE.with_(stream_interval=100))
    assert len(gathered) <= 2


def test_several_answers_with_their_stop_strings(engine, expected):
    params = FREE.with_(temperature=1.0, n=2, seed=3, stop=[expected.text[2:4]])
    last = collect(engine, params)[-1]
    assert [answer.index for answer in last.outputs] == [0, 1]
    assert all(answer.finish_reason for answer in last.outputs)


def test_leaving_the_iterator_takes_the_request_out(engine):
    async def main():
        stream = engine.generate("the hen", LONG, "left")
        async for _ in stream:
            break
        await stream.aclose()
        assert engine.get_num_unfinished_requests() == 0
        task = asyncio.create_task(anext(engine.generate("the hen", LONG, "cancelled")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The engine has told of the aborts by the time that it answers a later request.
        async for _ in engine.generate("the hen", FREE, "later"):
            pass

    asyncio.run(main())
    assert engine._engine.load.running == 0


def test_an_abort_ends_the_iterator(engine):
    async def main():
        results = []
        async for result in engine.generate("the hen", LONG, "a"):
            results.append(result)
            await engine.abort(["a", "unknown"])
        return results

    *_, result = asyncio.run(main())
    assert (result.finished, result.outputs[0].finish_reason) == (True, "abort")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda engine: collect(engine, FREE, lora_request=object()), InvalidField, "lora_request=.* is merged"),
        (lambda engine: collect(engine, FREE, sesion_id="x"), UnknownOption, "Did you mean session_id"),
        (lambda engine: collect(engine, FREE, prompt=["a", "b"]), InvalidRequest, "takes one prompt, got 2"),
        (lambda engine: collect(engine, {"n": 1}), InvalidRequest, "must be SamplingParams, got dict"),
        (lambda engine: collect(engine, FREE, prompt="a b " * 600), InvalidRequest, "context holds 512"),
        (lambda engine: collect(engine, FREE, priority=1), InvalidRequest, "no effect under"),
    ],
)
def test_bad_input_is_named_and_the_engine_lives(engine, call, error, message):
    with pytest.raises(error, match=message):
        call(engine)
    asyncio.run(engine.check_health())
    assert engine.get_num_unfinished_requests() == 0


@pytest.mark.parametrize(
    "name",
    [
        *("sleep", "wake_up", "encode", "add_lora", "collective_rpc", "start_profile", "stop_profile"),
        *("beam_search", "add_request"),
    ],
)
def test_what_is_not_there_says_what_to_do(engine, name):
    with pytest.raises(NotImplementedError, match=rf"AsyncLLM\.{name} is not possible\. .+"):
        getattr(engine, name)()


def test_a_misspelt_keyword_is_named(engine):
    with pytest.raises(UnknownOption, match=r"Did you mean priority\?"):
        engine.generate("a", FREE, "one", priorty=1)


def test_a_name_is_free_when_its_request_has_ended(engine):
    async def main():
        async for _ in engine.generate("the hen", LONG, "a"):
            with pytest.raises(InvalidRequest, match="request_id 'a' is running already"):
                await anext(engine.generate("the hen", FREE, "a"))
            break

    asyncio.run(main())
    assert collect(engine, FREE)[-1].finished


def test_a_caller_that_is_slow_to_listen_misses_nothing(engine, expected, monkeypatch):
    class LateStream(Stream[Item]):
        def __init__(self, *arguments):
            time.sleep(0.5)  # the engine's first tokens come in less
            super().__init__(*arguments)

    monkeypatch.setattr("tilewise.entrypoints.async_llm.Stream", LateStream)

    async def main():
        async with asyncio.timeout(60):
            return [output async for output in engine.generate("the hen", FREE, "a")]

    assert asyncio.run(main())[-1].outputs[0].token_ids == expected.token_ids


def test_conversations_and_what_else_there_is(engine):
    async def main():
        messages = [{"role": "user", "content": "the hen"}]
        results = [result async for result in engine.chat(messages, FREE, "chat")]
        assert results[-1].prompt.endswith("the hen<|im_end|>\n<|im_start|>assistant\n")
        assert await engine.reset_prefix_cache() is True
        await engine.reset_mm_cache()
        await engine.do_log_stats()
        assert (await engine.is_tracing_enabled(), await engine.is_sleeping()) == (False, False)
        assert await engine.get_model_config() is engine.model_config
        assert await engine.get_supported_tasks() == ("generate",)

    asyncio.run(main())
    assert (engine.is_running, engine.is_stopped, engine.errored) == (True, False, False)
    assert engine.get_tokenizer().eos_token == "<|im_end|>"
    assert engine.counters.generation_tokens > 0


def test_a_death_ends_the_iterators_and_the_engine_comes_back(folder, expected):
    with AsyncLLM(str(folder), **OPTIONS) as engine:

        async def dying():
            async for _ in engine.generate("the hen", LONG, "a"):
                os.kill(engine._engine.engines[0].pid, signal.SIGKILL)

        async def again():
            while True:
                try:
                    return [result async for result in engine.generate("the hen", FREE, "b")]
                except EngineDead:
                    await asyncio.sleep(0.05)

        with pytest.raises(EngineDead, match="ended by signal 9"):
            asyncio.run(dying())
        assert asyncio.run(asyncio.wait_for(again(), 60))[-1].outputs[0].token_ids == expected.token_ids
        engine.shutdown()
        with pytest.raises(EngineDead, match="was shut down: make another"):
            collect(engine, FREE)


def test_a_shutdown_ends_the_iterators(folder):
    async def main(engine):
        stream = engine.generate("the hen", LONG, "a")
        await anext(stream)
        await asyncio.to_thread(engine.shutdown)
        with pytest.raises(EngineDead, match="shutting down"):
            async for _ in stream:
                pass
        assert engine.get_num_unfinished_requests() == 0

    with AsyncLLM(str(folder), **OPTIONS) as engine:
        asyncio.run(main(engine))


def test_an_engine_that_cannot_start_says_why_at_once(folder):
    with pytest.raises(InvalidConfig, match="max_model_len"):
        AsyncLLM(str(folder), max_model_len=10**7)


def test_an_engine_that_is_stepped(folder, expected):
    engine = LLMEngine.from_engine_args(EngineArgs(str(folder), **OPTIONS))
    engine.add_request("a", "the hen", FREE)
    engine.add_request("b", {"prompt_token_ids": [40, 41]}, LONG)
    with pytest.raises(InvalidRequest, match="request_id 'a' is running already"):
        engine.add_request("a", "the hen", FREE)
    results = []
    while engine.has_unfinished_requests():
        results += engine.step()
        if any(result.finished for result in results):
            engine.abort_request(["b"])
    assert [result.outputs[0].token_ids for result in results if result.request_id == "a"][-1] == expected.token_ids
    assert not engine.llm._core.has_unfinished
    assert engine.step() == []


def test_a_request_that_is_refused_ends_alone(folder, monkeypatch):
    """A program that goes on until nothing is unfinished comes to an end, with all that the others have said."""
    submit = EngineCore.submit

    def submit_short(core: EngineCore, request: Request) -> None:
        if len(request.prompt_ids) > 200:
            raise TooLong("too long", prompt_tokens=len(request.prompt_ids), limit=200)
        submit(core, request)

    monkeypatch.setattr(EngineCore, "submit", submit_short)
    with LLM(str(folder), **OPTIONS) as llm:
        engine = LLMEngine(llm)
        engine.add_request("small", {"prompt_token_ids": [40, 41]}, SamplingParams(max_tokens=3, ignore_eos=True))
        engine.add_request("large", {"prompt_token_ids": [40] * 300}, FREE)
        results, refusals = [], []
        while engine.has_unfinished_requests():
            try:
                results += engine.step()
            except TooLong as refusal:
                refusals.append(refusal)
    assert len(refusals) == 1
    assert results[-1].finished
    assert len(results[-1].outputs[0].token_ids) == 3
