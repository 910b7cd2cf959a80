"""`vision_workers`: answers of an engine whose tiles are encoded by other processes, and what becomes of those."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.parallel.test_engine import parents
from tests.served import PICTURES, Served, question
from tests.tiny import TWINS, write_original
from tilewise import LLM, SamplingParams
from tilewise.errors import InvalidConfig, RankDied

GREEDY = SamplingParams(temperature=0, max_tokens=6, logprobs=1)
FILES = sorted(PICTURES.glob("*.png"))[:5]
SIZES: dict[str, Any] = {"dtype": "float32", "max_model_len": 512}


def prompts() -> list[dict[str, Any]]:
    return [{"prompt": "<image>\nWhat?", "multi_modal_data": {"image": picture(file)}} for file in FILES]


def picture(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        return opened.convert("RGB")


def answers(model: str, workers: int, **options: Any) -> list[Any]:
    with LLM(model, vision_workers=workers, **{**SIZES, **options}) as llm:
        outputs = llm.generate(prompts(), GREEDY, use_tqdm=False)
        outputs += llm.generate([prompts()[0], "and text"], GREEDY, use_tqdm=False)
    return [(one.outputs[0].token_ids, one.outputs[0].cumulative_logprob) for one in outputs]


def workers_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"tilewise.runner.vision_workers" in command and pid in parents(int(folder.name)):
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (1, {"dtype": "bfloat16", "async_scheduling": True, "batch_invariant": True}),
        (2, {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}, "max_num_batched_tokens": 64}),
    ],
)
def test_answers_are_those_of_one_process(workers: int, options: dict[str, Any]) -> None:
    options = {"max_num_seqs": 4, **options}
    assert answers("demo", workers, **options) == answers("demo", 0, **options)


def test_a_router_says_the_same_of_tiles(tmp_path: Path) -> None:
    folder = str(write_original(tmp_path / "twin", TWINS["InternVL3_5-1B-Flash"]))
    assert answers(folder, 1) == answers(folder, 0)


def test_tiles_on_disk_are_the_same_with_workers_and_without(tmp_path: Path) -> None:
    expected = answers("demo", 0)
    for workers in (1, 0, 1):
        assert answers("demo", workers, encoder_cache_dir=str(tmp_path)) == expected
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1, "one key"


def test_a_worker_that_is_killed_is_named_and_the_others_end() -> None:
    with LLM("demo", vision_workers=2, **SIZES) as llm:
        for worker in workers_of(os.getpid()):
            os.kill(worker, signal.SIGKILL)
        with pytest.raises(RankDied, match="Vision worker 1 of 2 ended with status -9; see the log: close this LLM"):
            llm.generate(prompts(), GREEDY, use_tqdm=False)
    assert workers_of(os.getpid()) == []


def test_a_server_goes_on_after_a_worker_was_killed_and_leaves_nobody_behind() -> None:
    server = Served("--vision-workers", "1", "--max-model-len", "512", "--dtype", "float32")
    try:
        server.wait_until_up()
        body = {"model": "demo", "messages": question("What is this?", FILES[0].name), "max_tokens": 4}
        before = server.client.post("/v1/chat/completions", json=body).json()
        os.kill(workers_of(server.engine_pid)[0], signal.SIGKILL)
        body["messages"] = question("What is this?", FILES[1].name)
        assert server.client.post("/v1/chat/completions", json=body).status_code >= 500
        deadline = time.monotonic() + 60
        while server.client.get("/health").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        body["messages"] = question("What is this?", FILES[0].name)
        again = server.client.post("/v1/chat/completions", json=body).json()
        assert again["choices"][0]["message"]["content"] == before["choices"][0]["message"]["content"]
        left = workers_of(server.engine_pid)
        os.kill(server.process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}/cmdline").exists() for pid in left) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in left if _runs(pid)]
    finally:
        server.process.kill()
        server.process.wait()
        server.client.close()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_parallel_size": 2}, "vision_workers=1 is not possible with 2 ranks"),
        ({"speculative_config": {"model": "demo", "num_speculative_tokens": 2}}, "not possible with a draft model"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        LLM("demo", vision_workers=1, **options)


def test_fewer_than_none_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"vision_workers must be from 0 \(none\) to 64, got -1"):
        LLM("demo", vision_workers=-1)
