"""`tilewise run-batch` from end to end: killed, interrupted, with an engine that dies, on a disk that is full."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import tilewise
from tests.jobs import poison
from tests.jobs.lines import results, write_lines
from tests.jobs.runs import MEDIA, Batch, chat, killed, lines_of, once_each, request, requests
from tilewise.config import EngineConfig
from tilewise.jobs.input import line_digests
from tilewise.jobs.job import Job
from tilewise.jobs.output import scan
from tilewise.jobs.progress import Summary
from tilewise.jobs.run import BatchRun
from tilewise.remote.engine import EngineProcess
from tilewise.server.config import ServerConfig


def test_killed_at_a_random_moment_each_line_is_answered_once(tmp_path):
    source, output = write_lines(tmp_path / "in.jsonl", requests(200)), tmp_path / "out.jsonl"
    last = killed(source, output, 200, 1, *MEDIA)
    once_each(output, 200)
    assert "200 lines: 200 succeeded, 0 failed" in last.said


def test_an_engine_that_is_killed_is_started_again_and_asked_again(tmp_path):
    source, output = write_lines(tmp_path / "in.jsonl", requests(120)), tmp_path / "out.jsonl"
    batch = Batch(source, output, *MEDIA, "--keep-order", "--max-in-flight", "16")
    batch.until(20)
    os.kill(batch.engine_pid, signal.SIGKILL)
    assert batch.end() == 0
    assert "was ended by signal 9" in batch.said
    once_each(output, 120)
    assert [row["custom_id"] for row in results(output)] == [f"{number}" for number in range(120)]


ENDLESS = 4_000  # lines that no machine answers while a second run starts and is refused


def test_ended_by_signals_and_beside_another_run(tmp_path):
    source, output = write_lines(tmp_path / "in.jsonl", requests(ENDLESS)), tmp_path / "out.jsonl"
    batch = Batch(source, output, *MEDIA)
    batch.until(5)
    second = Batch(source, output, *MEDIA)
    assert second.end() == 1
    assert f"another run writes {output}" in second.said
    assert batch.end(signal.SIGINT) == 130
    done = lines_of(output)
    assert 5 <= done < ENDLESS
    assert f"The run was ended by SIGINT. {done} of {ENDLESS} lines are done; the same command goes on" in batch.said
    assert "Traceback" not in batch.said
    batch = Batch(source, output, *MEDIA, "--shutdown-timeout", "60", "--max-in-flight", "7")
    batch.until(done + 5)
    assert batch.end(signal.SIGTERM) == 143
    assert done + 5 <= lines_of(output) < ENDLESS
    assert f"The run was ended by SIGTERM. {lines_of(output)} of {ENDLESS} lines" in batch.said
    assert all(row["response"]["status_code"] == 200 for row in results(output))


def test_a_full_disk(tmp_path):
    source, output = write_lines(tmp_path / "in.jsonl", requests(200)), tmp_path / "out.jsonl"
    batch = Batch(source, output, *MEDIA, file_size=20_000)
    assert batch.end() == 1
    done = lines_of(output)
    assert f"{output} cannot be written: File too large. {done} of 200 lines are done; the same command" in batch.said
    assert output.read_bytes().endswith(b"\n")
    assert 0 < done < 200
    assert all(row["response"]["status_code"] == 200 for row in results(output))


LINES = [
    request(0, "/v1/chat/completions", {**next(requests(2))["body"]}),
    list(requests(2))[1],  # a file, which nothing allows
    request(2, "/v1/completions", {"prompt": "one two", "max_tokens": 2}),
    request(3, "/v1/responses", {"input": "Hello", "max_output_tokens": 2}),
    request(4, "/v1/chat/completions", {**chat("Hello"), "max_token": 3}),
    request(5, "/v1/chat/completions", {**chat("Hello"), "model": "another"}),
    request(6, "/v1/chat/completions", {**chat("Hello"), "stream": True}),
    request(7, "/v1/embeddings", {"input": "Hello"}),
    "no JSON",
    "",
    "[]",
    " \t",
    request(0, "/tokenize", {"prompt": "Hello"}),
]
OUTCOMES = [200, 400, 200, 200, 400, 404, "stream_not_possible", "invalid_url", "invalid_json_line",
            "invalid_json_line", "duplicate_custom_id"]  # fmt: skip


def outcome(row: dict) -> int | str:
    return row["response"]["status_code"] if row["error"] is None else row["error"]["code"]


def test_from_python_and_asked_again_with_what_was_missing(tmp_path):
    source, output = write_lines(tmp_path / "in.jsonl", LINES), tmp_path / "out.jsonl"
    summary = tilewise.run_batch(source, output, max_num_seqs=2)
    rows = results(output)
    assert [outcome(row) for row in rows] == OUTCOMES
    assert "--allowed-local-media-path" in rows[1]["response"]["body"]["error"]["message"]
    assert "Did you mean max_tokens" in rows[4]["response"]["body"]["error"]["message"]
    assert rows[3]["response"]["body"]["object"] == "response"
    assert isinstance(summary, Summary)
    assert (summary.lines, summary.succeeded, summary.earlier) == (11, 3, 0)
    assert summary.failed == {
        "400": 2, "404": 1, "duplicate_custom_id": 1, "invalid_json_line": 2, "invalid_url": 1,
        "stream_not_possible": 1,
    }  # fmt: skip
    assert summary.prompt_tokens > 20
    assert summary.completion_tokens >= 4
    assert summary.seconds > 0

    async def notebook() -> Summary:
        """A loop runs already where notebooks run a cell."""
        return tilewise.run_batch(source, output, retry_failed=True, allowed_local_media_path="/")

    summary = asyncio.run(notebook())
    assert [outcome(row) for row in results(output)] == [200, 200, *OUTCOMES[2:]]
    assert (summary.lines, summary.succeeded, summary.earlier) == (11, 4, 3)


def test_an_input_without_lines(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [])
    assert tilewise.run_batch(source, tmp_path / "out.jsonl").lines == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.slow
def test_a_line_that_ends_engines_ends_no_run(tmp_path):
    """Twice it dies beside others, then alone; it fails, and they are answered."""
    lines = [request(number, "/v1/completions", {"prompt": f"{number}", "max_tokens": 2}) for number in range(40)]
    lines[7]["body"]["prompt"] = poison.WORD
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    digests = line_digests(source)
    job = Job(input_file=source, output_file=output, max_in_flight=16)
    work = BatchRun(job, EngineConfig.of(), ServerConfig(), digests, scan(output, digests))
    asyncio.run(work.run(EngineProcess(), (), poison.build))
    summary = work.found.summary
    assert (summary.succeeded, summary.failed) == (39, {"503": 1})
    [failed] = [row for row in results(output) if outcome(row) == 503]
    assert failed["custom_id"] == "7"


@pytest.mark.slow
def test_a_long_run_killed_ten_times(tmp_path):
    count = 20_000
    source, output = write_lines(tmp_path / "in.jsonl", requests(count)), tmp_path / "out.jsonl"
    last = killed(source, output, count, 10, *MEDIA)
    once_each(output, count)
    assert f"{count} lines: {count} succeeded, 0 failed" in last.said
