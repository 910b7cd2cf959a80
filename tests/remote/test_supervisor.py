"""A real engine in a real process: answers, aborts, deaths and new lives."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.equal.driver import prompt
from tests.tiny import END_IDS, IMAGE_ID, SPECS, write_original
from tilewise import LLM, SamplingParams
from tilewise.config import EngineConfig
from tilewise.errors import EngineDead, InvalidConfig, TooLong
from tilewise.remote import process
from tilewise.remote import supervisor as supervisor_module
from tilewise.remote.engine import EngineProcess
from tilewise.remote.supervisor import RestartRule, Supervisor
from tilewise.remote.wire import Launch
from tilewise.sampling_params import StructuredOutputsParams
from tilewise.weights.checkpoint import Checkpoint

PATIENCE = 300
"""Seconds after which something hangs; a busy machine takes long to start a process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


def launch(folder, **options) -> Launch:
    config = EngineConfig.of(model=str(folder), **{"max_model_len": 512, "dtype": "float32", **options})
    model = Checkpoint.of(EngineConfig(model=str(folder)))
    return Launch(config, model, None, IMAGE_ID, frozenset(END_IDS))


@dataclass
class Seen:
    """A watcher that remembers."""

    outboxes: list = field(default_factory=list)
    states: list = field(default_factory=list)

    def took(self, engine, outbox) -> None:
        self.outboxes.append(outbox)

    def became(self, engine, state) -> None:
        self.states.append(state)


class SearchForGarbage:
    """Arrives as (is it done, are objects left out of it), when it was sent."""

    def __reduce__(self):
        return tuple, ([gc.isenabled(), gc.get_freeze_count() > 0],)


def build_and_tell(launch: Launch):
    while_loading = gc.isenabled()
    core, ready = process.build(launch)
    return core, replace(ready, seconds={"loading": while_loading, "ready": SearchForGarbage()})


@pytest.fixture(scope="module")
def beside(folder):
    """Do `work(supervisor)` beside one running engine, which tests share until the last of them kills it."""
    with asyncio.Runner() as runner:
        engine = Supervisor(replace(launch(folder), build=build_and_tell))
        runner.run(engine.start())
        yield lambda work: runner.run(asyncio.wait_for(work(engine), PATIENCE))
        runner.run(engine.close())


def run(folder, work, seen, rule):
    """Do `work(supervisor)` beside an engine of its own."""

    async def main():
        engine = Supervisor(launch(folder), rule)
        engine.watch(seen)
        await engine.start()
        try:
            return await asyncio.wait_for(work(engine), PATIENCE)
        finally:
            await engine.close()

    return asyncio.run(main())


async def drain(stream) -> None:
    async for _ in stream:
        pass


async def ask(engine: Supervisor, *requests) -> list[list[int]]:
    tokens = {request.id: [] for request in requests}
    async with engine.open(requests) as stream:
        async for deltas in stream:
            for delta in deltas:
                tokens[delta.request_id].append(delta.token.token_id)
    return list(tokens.values())


def test_in_process_equals_spawned(folder, beside):
    """Requests at once, with a picture, penalties and a seed: the same tokens as in this process."""
    texts = [(5, 9, 11), (7, 8, 9, 10, 11), (6, 6)]
    params = SamplingParams(temperature=0.7, seed=3, max_tokens=12, repetition_penalty=1.2, ignore_eos=True)
    with LLM(str(folder), max_model_len=512, dtype="float32") as llm:
        outputs = llm.generate([list(ids) for ids in texts], params, use_tqdm=False)
    expected = [output.outputs[0].token_ids for output in outputs]
    requests = [replace(prompt(str(number), 1, 1), prompt_ids=ids, sampling=params) for number, ids in enumerate(texts)]
    picture = prompt("picture", content=2, text=17, tiles=3, max_tokens=4)

    async def work(engine):
        return await asyncio.gather(*[ask(engine, request) for request in (*requests, picture)])

    found = beside(work)
    assert [tokens for (tokens,) in found[:3]] == expected
    assert len(found[3][0]) == 4


def test_what_the_engine_says_of_itself(beside):
    seen = Seen()

    async def work(engine):
        engine.watch(seen)
        assert engine.resolved.limits.max_model_len == 512
        before = engine.counters
        await ask(engine, prompt("a", 1, 20, tiles=2, max_tokens=3))
        return before, engine.counters, engine.load

    before, after, load = beside(work)
    assert after.generation_tokens - before.generation_tokens == 3
    assert after.tiles_encoded - before.tiles_encoded == 2
    assert load.running == load.waiting == 0
    assert sum(len(outbox.deltas) for outbox in seen.outboxes) == 3


def test_garbage_is_looked_for_again_when_the_model_is_loaded_and_not_in_it(beside):
    async def work(engine):
        return engine.ready.seconds

    assert beside(work) == {"loading": False, "ready": (True, True)}


def test_a_structured_answer_and_its_abort(folder, beside):
    """The grammar is compiled over there; an abort does not overtake it."""
    wanted = StructuredOutputsParams(regex="(ab|ba){3}")
    request = prompt("a", 1, 9, temperature=0.8, seed=2, max_tokens=40, structured_outputs=wanted)
    request = request.with_(stop_ids=frozenset(END_IDS))
    endless = request.with_(
        id="b", sampling=request.sampling.with_(structured_outputs=StructuredOutputsParams(regex="(ab)*"))
    )

    async def work(engine):
        async with engine.open([endless]):
            pass  # gone at once
        (tokens,) = await ask(engine, request)
        while engine.load.running or engine.load.waiting:
            await asyncio.sleep(0.01)
        return tokens

    with LLM(str(folder), max_model_len=512) as llm:
        text = llm.inputs.tokenizer.decode(beside(work))
    assert re.fullmatch("(ab|ba){3}", text)


def test_leaving_a_stream_frees_what_its_request_holds(beside):
    async def work(engine):
        before = engine.counters.generation_tokens
        long = [prompt(name, content, 20, max_tokens=480, ignore_eos=True) for content, name in enumerate("ab", 1)]
        async with engine.open(long) as stream:
            await anext(stream)
        (after,) = await ask(engine, prompt("c", 3, 5, max_tokens=2))
        return after, engine.load, engine.counters.generation_tokens - before

    after, load, generated = beside(work)
    assert len(after) == 2
    assert load == replace(load, running=0, waiting=0, kv_cache_usage=0.0)
    assert generated < 2 * 480


def test_a_request_that_cannot_fit_is_refused_and_the_others_go_on(beside):
    async def work(engine):
        async def too_long():
            with pytest.raises(TooLong, match="hold 512"):
                await ask(engine, prompt("long", 1, 600))

        _, answers = await asyncio.gather(too_long(), ask(engine, prompt("a", 2, 9, max_tokens=3)))
        return answers

    assert len(beside(work)[0]) == 3


def test_an_engine_that_is_killed_ends_its_streams_and_comes_back(beside, monkeypatch, caplog):
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE", 0.3)

    async def work(engine):
        first = engine.pid
        async with engine.open([prompt("a", 1, 20, max_tokens=480, ignore_eos=True)]) as stream:
            await anext(stream)
            os.kill(first, signal.SIGKILL)
            with pytest.raises(EngineDead, match="was ended by signal 9: send the request again in"):
                await drain(stream)
        with pytest.raises(EngineDead, match="The engine is restarting"):
            engine.open([prompt("b", 1, 20)])
        while engine.state != "ready":
            await asyncio.sleep(0.05)
        return first, engine.pid, await ask(engine, prompt("c", 1, 5, max_tokens=2))

    first, second, answers = beside(work)
    assert first != second
    assert len(answers[0]) == 2
    assert caplog.text.count("is started again") == 1
    assert "ended by signal 9; 1 requests are lost" in caplog.text


def test_an_engine_whose_process_cannot_be_started_is_tried_again(beside, monkeypatch, caplog):
    """Whatever ended it may leave no memory for another, for a while."""
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE", 0.1)
    refusals = iter([OSError(errno.ENOMEM, "Cannot allocate memory")])

    def start(*arguments):
        for refusal in refusals:
            raise refusal
        return EngineProcess(*arguments)

    async def work(engine):
        monkeypatch.setattr(supervisor_module, "EngineProcess", start)
        os.kill(engine.pid, signal.SIGKILL)
        while engine.state == "ready":
            await asyncio.sleep(0.02)
        while engine.state != "ready":
            await asyncio.sleep(0.05)
        return await ask(engine, prompt("a", 1, 5, max_tokens=2))

    assert len(beside(work)[0]) == 2
    assert "The engine's process cannot be started: [Errno 12] Cannot allocate memory" in caplog.text


def test_an_engine_that_dies_too_often_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE", 0.1)
    seen = Seen()

    async def work(engine):
        for _ in range(2):
            while engine.state != "ready":
                await asyncio.sleep(0.02)
            os.kill(engine.pid, signal.SIGKILL)
            while engine.state == "ready":
                await asyncio.sleep(0.02)
        with pytest.raises(EngineDead, match="The engine is failed"):
            engine.check()

    run(folder, work, seen, RestartRule(most=1, window=3600))
    assert seen.states == ["ready", "restarting", "ready", "failed", "closed"]


def test_an_engine_that_cannot_start_says_why(folder):
    async def work():
        engine = Supervisor(launch(folder, max_model_len=400, kv_cache_memory_bytes=20_000))
        try:
            await asyncio.wait_for(engine.start(), PATIENCE)
        finally:
            await engine.close()

    with pytest.raises(InvalidConfig, match="lower max_model_len to"):
        asyncio.run(work())


def test_the_engine_ends_with_the_process_that_feeds_it(folder, tmp_path):
    """Even if that is killed: nothing is left behind."""
    script = tmp_path / "feeder.py"
    script.write_text(
        "import asyncio, os, signal\n"
        "from tests.remote.test_supervisor import launch\n"
        "from tilewise.remote.supervisor import Supervisor\n"
        "async def main():\n"
        f"    engine = Supervisor(launch({str(folder)!r}))\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )

    async def work():
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path.cwd()), *sys.path))},
        )
        assert process.stdout is not None
        pid = int(await asyncio.wait_for(process.stdout.readline(), PATIENCE))
        await process.wait()
        for _ in range(600):
            if not is_alive(pid):
                return
            await asyncio.sleep(0.05)
        pytest.fail("the engine's process is still there")

    asyncio.run(work())


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
