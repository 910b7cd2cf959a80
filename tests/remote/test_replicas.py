"""Several engines in real processes behind one interface."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.equal.driver import prompt
from tests.remote.test_supervisor import PATIENCE, Seen, ask, drain, is_alive, launch
from tests.tiny import SPECS, write_original
from tilewise import LLM
from tilewise.config import EngineConfig
from tilewise.errors import EngineDead, InvalidConfig, TooLong
from tilewise.host import Memory, available_memory
from tilewise.remote import process
from tilewise.remote import supervisor as supervisor_module
from tilewise.remote.engine import EngineProcess
from tilewise.remote.replicas import Replicas, memory_part, replicas_of
from tilewise.remote.supervisor import RestartRule
from tilewise.remote.wire import Launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


@pytest.fixture(scope="module")
def beside(folder):
    """Do `work(replicas)` beside two engines, which tests share until the last of them kills both."""
    seen = Seen()
    engines = replicas_of(launch(folder, data_parallel_size=2))

    async def alone(work):
        while engines.load.running:  # what an earlier test left
            await asyncio.sleep(0.01)
        return await asyncio.wait_for(work(engines), PATIENCE)

    with asyncio.Runner() as runner:
        runner.run(engines.start())
        engines.watch(seen)
        yield lambda work: runner.run(alone(work))
        runner.run(engines.close())
    assert seen.states[-2:] == ["closed", "closed"]


def generated(engines: Replicas) -> list[int]:
    return [engine.counters.generation_tokens for engine in engines.engines]


def grown(engines: Replicas, before: list[int]) -> list[int]:
    return [now - then for now, then in zip(generated(engines), before, strict=True)]


def long(name: str, content: int, tokens: int = 480):
    return prompt(name, content, 20, max_tokens=tokens, ignore_eos=True)


def test_tokens_are_those_of_one_engine_with_and_without_seeds(folder, beside):
    """Before others ask the engines: what is drawn without a seed depends on how much was drawn before."""
    drawn = {"temperature": 0.9, "max_tokens": 12, "ignore_eos": True}
    requests = [prompt(str(number), number % 5, 20 + number, tiles=number % 3, **drawn) for number in range(8)]
    requests += [prompt("seeded", 3, 30, seed=5, **drawn), prompt("greedy", 4, 30, max_tokens=12)]
    with LLM(str(folder), max_model_len=512, dtype="float32") as llm:
        for request in requests:
            llm._core.submit(request)
        expected = {request.id: [] for request in requests}
        while llm._core.has_unfinished:
            for delta in llm._core.step():
                expected[delta.request_id].append(delta.token.token_id)

    async def work(engines):
        return await ask(engines, *requests), generated(engines), engines.counters, engines.load

    found, each, together, load = beside(work)
    assert found == list(expected.values())
    assert together.generation_tokens == sum(each) == 120
    assert min(each) > 0
    assert (load.running, load.waiting, load.kv_cache_usage) == (0, 0, 0.0)


def test_a_picture_that_comes_again_finds_its_tiles(beside):
    picture = prompt("first", 7, 20, tiles=3, max_tokens=2)

    async def work(engines):
        before = [engine.counters for engine in engines.engines]
        async with engines.open([long("busy", 1)]) as stream:
            await anext(stream)
            for number in range(5):
                await ask(engines, replace(picture, id=f"{number}", prompt_ids=(*picture.prompt_ids, 5 + number)))
            busy = stream.engine_of("busy")
        return busy, before, [engine.counters for engine in engines.engines]

    busy, before, after = beside(work)
    both = list(zip(before, after, strict=True))
    assert both[busy][1].tiles_encoded == both[busy][0].tiles_encoded
    assert [now.tiles_encoded - then.tiles_encoded for then, now in both if now is not after[busy]] == [3]
    assert [now.tile_cache_hits - then.tile_cache_hits for then, now in both if now is not after[busy]] == [12]


def test_many_at_once_use_both(beside):
    async def work(engines):
        places, before = Counter(), generated(engines)
        requests = [long(f"{number}", 1, 10) for number in range(16)]

        async def one(request):
            async with engines.open([request]) as stream:
                places[stream.engine_of(request.id)] += 1
                await drain(stream)

        await asyncio.gather(*map(one, requests))
        return places, grown(engines, before), [view.in_flight for view in engines._router.views]

    places, each, left = beside(work)
    assert min(places.values()) >= 6
    assert each == [10 * places[0], 10 * places[1]]
    assert left == [0, 0]


def test_leaving_a_stream_over_both_frees_what_its_requests_hold(beside):
    async def work(engines):
        before = generated(engines)
        async with engines.open([long("a", 1), long("b", 2), long("c", 3)]) as stream:
            await anext(stream)
            assert {stream.engine_of(name) for name in "abc"} == {0, 1}
            stream.abort("b")
        while engines.load.running:
            await asyncio.sleep(0.01)
        return await ask(engines, prompt("after", 3, 5, max_tokens=2)), grown(engines, before), engines._places

    (after,), each, places = beside(work)
    assert len(after) == 2
    assert sum(each) < 3 * 480
    assert places == {}


def test_one_that_cannot_fit_is_refused_and_the_others_go_on(beside):
    async def work(engines):
        async def too_long(name):
            with pytest.raises(TooLong, match="hold 512"):
                await ask(engines, prompt(name, 1, 600))

        answers = ask(engines, *(prompt(f"{number}", number, 9, max_tokens=3) for number in range(4)))
        _, _, found = await asyncio.gather(too_long("x"), too_long("y"), answers)
        return found, [view.in_flight for view in engines._router.views]

    found, left = beside(work)
    assert [len(tokens) for tokens in found] == [3, 3, 3, 3]
    assert left == [0, 0]


def test_caches_of_all_are_emptied(beside):
    request = prompt("a", 1, 40, tiles=2, max_tokens=2)

    async def work(engines):
        assert await engines.reset("prefix")
        assert await engines.reset("tiles")
        before = [engine.counters for engine in engines.engines]
        for engine in engines.engines:
            await ask(engine, request)
        assert await engines.reset("prefix")
        assert await engines.reset("tiles")
        for engine in engines.engines:
            await ask(engine, request)
        async with engines.open([long("busy", 1)]) as stream:
            await anext(stream)
            busy = await engines.reset("prefix")
        return before, [engine.counters for engine in engines.engines], busy

    before, after, busy = beside(work)
    both = list(zip(before, after, strict=True))
    assert [now.prefix_cache_hits - then.prefix_cache_hits for then, now in both] == [0, 0]
    assert [now.tiles_encoded - then.tiles_encoded for then, now in both] == [4, 4]
    assert not busy


def test_one_that_is_killed_ends_its_own_streams_alone_and_comes_back(beside, monkeypatch, caplog):
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE", 0.3)
    seen = Seen()

    async def work(engines):
        engines.watch(seen)
        first = [engine.pid for engine in engines.engines]
        async with (
            engines.open([long("stays", 1)]) as stays,
            engines.open([long("dies", 2)]) as dies,
            engines.open([long("half", 3), long("other half", 4)]) as both,
        ):
            number = dies.engine_of("dies")
            assert number != stays.engine_of("stays")
            await anext(dies)
            os.kill(first[number], signal.SIGKILL)
            said = f"Engine {number}'s process was ended by signal 9"
            for stream in (dies, both):
                with pytest.raises(EngineDead, match=f"{said}: send the request"):
                    await drain(stream)
            assert (engines.engines[number].state, engines.state) == ("restarting", "ready")
            engines.check()
            assert [len(tokens) for tokens in await ask(engines, prompt("new", 5, 9, max_tokens=3))] == [3]
            left = await ask_rest(stays)
        while engines.engines[number].state != "ready":
            await asyncio.sleep(0.05)
        again = await ask(engines, *(long(f"again {number}", number, 9) for number in range(4)))
        assert caplog.text.count("is started again") == 1
        assert f"{said}; 2 requests are lost" in caplog.text
        return first, [engine.pid for engine in engines.engines], number, left, again, generated(engines)

    first, second, number, left, again, each = beside(work)
    assert left == 480
    assert first[1 - number] == second[1 - number]
    assert first[number] != second[number]
    assert [len(tokens) for tokens in again] == 4 * [9]
    assert each[number] == 18, "the new process has counted its half of the last requests"
    assert seen.states == ["restarting", "ready"]


async def ask_rest(stream) -> int:
    return sum([len(deltas) async for deltas in stream])


def test_with_none_left_requests_are_refused_until_one_is_back(beside, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE", 0.2)

    async def work(engines):
        for engine in engines.engines:
            os.kill(engine.pid, signal.SIGKILL)
        while engines.state == "ready":
            await asyncio.sleep(0.02)
        with pytest.raises(EngineDead, match="All engines are restarting: send the request again in 1 seconds"):
            engines.open([prompt("a", 1, 5)])
        with pytest.raises(EngineDead, match="All engines are restarting"):
            await engines.reset("prefix")
        while engines.state != "ready":
            await asyncio.sleep(0.05)
        return await ask(engines, prompt("b", 1, 5, max_tokens=2))

    assert [len(tokens) for tokens in beside(work)] == [2]


def test_one_that_dies_too_often_is_given_up_and_the_other_goes_on(folder, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE", 0.1)

    async def main():
        engines = replicas_of(launch(folder, data_parallel_size=2), RestartRule(most=0, window=60))
        await engines.start()
        os.kill(engines.engines[0].pid, signal.SIGKILL)
        while engines.engines[0].state != "failed":
            await asyncio.sleep(0.02)
        alone = engines.state, await ask(engines, prompt("b", 1, 5, max_tokens=2))
        os.kill(engines.engines[1].pid, signal.SIGKILL)
        while engines.engines[1].state != "failed":
            await asyncio.sleep(0.02)
        at_last = engines.state
        await engines.close()
        return *alone, at_last

    state, answers, at_last = asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert (state, len(answers[0]), at_last) == ("ready", 2, "failed")


def build_and_tell(launch: Launch):
    torch.set_num_threads(4)
    core, ready = process.build(launch)
    return core, replace(ready, seconds={"threads": torch.get_num_threads()})


def test_each_has_its_part_of_threads_and_memory(folder):
    asked = launch(folder, data_parallel_size=2, max_model_len=2048)
    memory = Memory(total=10**9, free=50 * 2**20)

    async def work():
        engines = replicas_of(replace(asked, build=build_and_tell, part=memory))
        await engines.start()
        await engines.close()
        return [engine.ready for engine in engines.engines]

    ready = asyncio.run(work())
    assert [one.seconds["threads"] for one in ready] == [2, 2]
    assert ready[0].resolved == ready[1].resolved
    limits = ready[0].resolved.limits
    assert limits.num_blocks - 1 < limits.max_num_seqs * limits.max_model_len // limits.block_size, (
        "as many as would fit"
    )


def test_the_memory_of_one_machine_is_promised_once():
    here = available_memory()
    part = memory_part(EngineConfig(data_parallel_size=4))
    assert part is not None
    assert part.total == here.total // 4
    assert 4 * part.free == pytest.approx(here.free, rel=0.2)
    assert memory_part(EngineConfig()) is None


def test_more_than_this_machine_can_hold_are_refused_before_one_is_started():
    with pytest.raises(InvalidConfig, match=r"data_parallel_size=9999 is not possible: 19998 processes .* use \d+ at"):
        LLM("nobody/such-model", data_parallel_size=9999, tensor_parallel_size=2)


def test_engines_that_cannot_start_say_why_and_none_is_left(folder):
    first = EngineProcess()

    async def work():
        engines = replicas_of(launch(folder, data_parallel_size=2, max_model_len=400, kv_cache_memory_bytes=20_000))
        with pytest.raises(InvalidConfig, match="lower max_model_len to"):
            await asyncio.wait_for(engines.start(first), PATIENCE)
        return [engine.pid for engine in engines.engines]

    pids = asyncio.run(work())
    assert first.pid == pids[0]
    assert not any(map(is_alive, pids))


def never_ready(launch: Launch):
    Path(os.environ["MARK"], str(os.getpid())).touch()
    while True:
        signal.pause()


def test_one_that_is_left_alone_while_it_loads_ends(folder, tmp_path):
    """The feeding process is killed, so that it can tell nobody."""
    script = tmp_path / "feeder.py"
    script.write_text(
        "import asyncio\n"
        "from dataclasses import replace\n"
        "from tests.remote.test_replicas import launch, never_ready\n"
        "from tilewise.remote.replicas import replicas_of\n"
        "if __name__ == '__main__':\n"
        f"    engines = replicas_of(replace(launch({str(folder)!r}, data_parallel_size=2), build=never_ready))\n"
        "    asyncio.run(engines.start())\n"
    )
    marks = tmp_path / "marks"
    marks.mkdir()

    async def work():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(Path.cwd()), *sys.path)), "MARK": str(marks)}
        feeder = await asyncio.create_subprocess_exec(sys.executable, str(script), env=environment)
        while len(found := [int(mark.name) for mark in marks.iterdir()]) < 2:
            await asyncio.sleep(0.05)
        feeder.kill()
        await feeder.wait()
        while any(map(is_alive, found)):
            await asyncio.sleep(0.05)
        with suppress(ProcessLookupError):
            os.kill(feeder.pid, 0)

    asyncio.run(asyncio.wait_for(work(), PATIENCE))
