"""Engines of several ranks: answers of one, and what becomes of it when a rank does not come back."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.encoded import demo_rows, part_of
from tests.remote.test_supervisor import is_alive
from tests.served import PICTURES, question, served
from tilewise import LLM, SamplingParams, StructuredOutputsParams
from tilewise.errors import InvalidConfig, RankDied
from tilewise.quantize import QuantizeOptions
from tilewise.quantize.run import quantize

QUESTIONS = json.loads((PICTURES.parent / "questions.json").read_text())
GREEDY = SamplingParams(temperature=0, max_tokens=12, logprobs=1)


def conversations() -> list[list[dict[str, Any]]]:
    """The first question about each of the demo's pictures."""
    return [
        question(one["turns"][0]["question"], *one["pictures"]) for one in QUESTIONS[:8] if len(one["pictures"]) == 1
    ]


def answers(model: str, ranks: int, **options: Any) -> list[tuple[Any, list[float]]]:
    engine = {"dtype": "float32", "max_model_len": 512, "allowed_local_media_path": str(PICTURES), **options}
    digits = SamplingParams(temperature=0, max_tokens=8, structured_outputs=StructuredOutputsParams(regex="[0-9]{3}"))
    drawn = SamplingParams(temperature=1, seed=5, max_tokens=8, logprobs=0)
    with LLM(model, tensor_parallel_size=ranks, **engine) as llm:
        outputs = llm.chat(conversations(), GREEDY, use_tqdm=False)
        outputs += llm.generate(["1 2 3 1 2 3 1 2", "What?"], GREEDY, use_tqdm=False)
        outputs += llm.generate(["Say", "Count"], [digits, drawn], use_tqdm=False)
    return [
        (one.outputs[0].token_ids, [next(iter(some.values())).logprob for some in one.outputs[0].logprobs or ()])
        for one in outputs
    ]


@pytest.fixture(scope="module")
def alone() -> list[tuple[Any, list[float]]]:
    return answers("demo", 1)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, {"speculative_config": {"model": "demo", "num_speculative_tokens": 2}, "sequence_parallel_tokens": 8}),
        (2, {"pipeline_parallel_size": 2, "speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}),
        (1, {"pipeline_parallel_size": 3, "async_scheduling": True, "max_num_batched_tokens": 64, "max_num_seqs": 4}),
    ],
)
def test_answers_are_those_of_one_rank(
    alone: list[tuple[Any, list[float]]], ranks: int, options: dict[str, Any]
) -> None:
    found = answers("demo", ranks, **options)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in alone]
    for (_, ours), (_, theirs) in zip(found, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
def test_quantised_checkpoints_are_shared_out_too(tmp_path: Path) -> None:
    """By whole engines; the logits of all schemes are in `test_logits`."""
    quantize(QuantizeOptions(model="demo", out=str(tmp_path / "out"), scheme="w4a16"), show=False)
    one, two = (answers(str(tmp_path / "out"), ranks) for ranks in (1, 2))
    sure = len(conversations())  # what stands behind has near ties, and each rank rounds its part of a row
    assert [tokens for tokens, _ in two[:sure]] == [tokens for tokens, _ in one[:sure]]


def ranks_of(parent: int) -> list[int]:
    """Processes below this one that are ranks."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
                above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if b"tilewise.runner.ranks" in command and (above == parent or parent in parents(above)):
                found.append(int(folder.name))
    return found


def parents(pid: int) -> Iterator[int]:
    while pid > 1:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def listening(pid: int) -> set[str]:
    """Local addresses at which a process waits for connections, in the kernel's spelling."""
    own, found = set(), set()
    for end in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which this is read
            own.add(str(end.readlink()))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in own:
                found.add(columns[1].partition(":")[0])
    return found


def test_ranks_keep_to_cores_of_their_own() -> None:
    cores = os.sched_getaffinity(0)
    with LLM("demo", tensor_parallel_size=2, dtype="float32", max_model_len=256, cpu_binding=True):
        (rank,) = ranks_of(os.getpid())
        if len(cores) > 1:
            ours, theirs = os.sched_getaffinity(0), os.sched_getaffinity(rank)
            assert not ours & theirs
            assert ours | theirs <= cores
    assert os.sched_getaffinity(0) == cores


def test_more_ranks_than_cores_share_them(caplog: pytest.LogCaptureFixture) -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with LLM("demo", tensor_parallel_size=2, dtype="float32", max_model_len=256, cpu_binding=True):
            pass
        assert "2 ranks have fewer cores than that" in caplog.text
    finally:
        os.sched_setaffinity(0, cores)


def test_an_error_of_the_first_rank_alone_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in the first rank")

    with LLM("demo", tensor_parallel_size=2, dtype="float32", max_model_len=256) as llm:
        monkeypatch.setattr("tilewise.runner.runner.sample", fail)
        with pytest.raises(ZeroDivisionError, match="in the first rank"):
            llm.generate("a", GREEDY, use_tqdm=False)
    assert ranks_of(os.getpid()) == []


@pytest.mark.parametrize(("ranks", "said"), [(3, r"attention heads \(4\) must be divisible"), (8, "attention heads")])
def test_heads_that_cannot_be_shared_are_refused_before_a_process_is_started(ranks: int, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        LLM("demo", tensor_parallel_size=ranks)
    assert ranks_of(os.getpid()) == []


def test_a_server_goes_on_after_a_rank_was_killed_and_leaves_nobody_behind() -> None:
    asked = QUESTIONS[0]
    messages = question(asked["turns"][0]["question"], asked["pictures"][0])
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    with served("-tp", "2", "--dtype", "float32", "--max-model-len", "512") as server:
        first = server.client.post("/v1/chat/completions", json=body).json()
        (rank,) = ranks_of(server.process.pid)
        os.kill(rank, signal.SIGKILL)
        # Nobody asks anything meanwhile.
        assert server.logs("ended (Rank 1 of 2 ended with status -9); 0 requests are lost")
        assert server.logs("is started again")
        again: httpx.Response | None = None
        for _ in range(1000):
            again = server.client.post("/v1/chat/completions", json=body)
            if again.status_code == 200:
                break
            time.sleep(0.3)
        assert again is not None
        assert again.json()["choices"] == first["choices"]
        (new,) = ranks_of(server.process.pid)
        assert new != rank
        below = [server.engine_pid, new]
        server.process.kill()  # it can tell nobody
        server.process.wait()
        until = time.monotonic() + 60
        while any(map(is_alive, below)):
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture(scope="module")
def two() -> Iterator[LLM]:
    """An engine of two ranks for the tests from here on, of which the last kills one: a process has one at a time."""
    with LLM("demo", tensor_parallel_size=2, enable_mm_embeds=True, dtype="float32", max_model_len=512) as llm:
        yield llm
    assert ranks_of(os.getpid()) == []


def test_tiles_that_are_kept_on_disk_reach_all_ranks(alone: list[tuple[Any, list[float]]], tmp_path: Path) -> None:
    answers("demo", 1, encoder_cache_dir=str(tmp_path))
    kept = {path: path.stat().st_ino for path in tmp_path.rglob("*.safetensors")}
    assert kept
    found = answers("demo", 2, encoder_cache_dir=str(tmp_path))
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in alone]
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*.safetensors")} == kept


def test_rows_that_come_encoded_reach_all_ranks(two: LLM) -> None:
    asked = [*question("What colour is the sign?", "stop_sign.jpg")]
    rows = [{"role": "user", "content": [part_of(demo_rows("stop_sign.jpg")), asked[0]["content"][1]]}]
    found = []
    with LLM("demo", enable_mm_embeds=True, dtype="float32", max_model_len=512) as one:
        for llm, messages in ((one, asked), (two, rows), (two, asked)):
            before = llm.counters.tiles_encoded
            found.append(llm.chat(messages, GREEDY, use_tqdm=False)[0].outputs[0])
            assert llm.counters.tiles_encoded - before == (0 if messages is rows else 13)
    assert found[0].token_ids == found[1].token_ids == found[2].token_ids
    likely = [[next(iter(some.values())).logprob for some in one.logprobs or ()] for one in found]
    assert likely[1] == pytest.approx(likely[0], abs=1e-4)


def test_ranks_of_one_machine_cannot_be_reached_from_another(two: LLM) -> None:
    (rank,) = ranks_of(os.getpid())
    assert listening(rank) == {"0100007F"}
    assert listening(os.getpid()) <= {"0100007F"}


def test_a_rank_that_is_killed_is_named_and_the_others_end(two: LLM) -> None:
    (rank,) = ranks_of(os.getpid())
    os.kill(rank, signal.SIGKILL)
    with pytest.raises(RankDied, match="Rank 1 of 2 ended with status -9: close this LLM and make another one"):
        two.generate("a", GREEDY, use_tqdm=False)
