"""`tilewise run-batch` up to the run itself, and all that it refuses before a model is loaded."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from pathlib import Path

import pytest

import tilewise.jobs.run
from tests.jobs.lines import request, write_lines
from tilewise.cli import main
from tilewise.cli.run_batch import RUN_BATCH, read_job
from tilewise.errors import Unfinished
from tilewise.jobs.input import read_lines
from tilewise.jobs.progress import Summary
from tilewise.jobs.run import run_batch


@pytest.fixture
def asked(monkeypatch):
    """What was to be run; the outcome is what the list ends with."""
    calls = []
    outcome = [Summary(1, Counter({"400": 2}), 10, 5, 1, 2.0)]

    def run(*arguments):
        calls.append(arguments)
        if isinstance(outcome[-1], Exception):
            raise outcome[-1]
        return outcome[-1]

    monkeypatch.setattr(tilewise.jobs.run, "run", run)
    root, ours = logging.getLogger(), logging.getLogger("tilewise")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield calls, outcome
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_lines(tmp_path / "in.jsonl", [request("a"), request("b")])


def test_job_and_both_configs(asked, source, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "a key of servers")
    words = ("-i", "in.jsonl", "--output_file=out.jsonl", "some/model", "--no-keep-order", "--max-num-seqs", "6")
    assert main(["run-batch", *words, "--retries", "0", "--max-body-mb", "2"]) == 0
    [(job, engine, server, signals)] = asked[0]
    assert (job.input_file, job.output_file) == (Path("in.jsonl"), Path("out.jsonl"))
    assert (job.keep_order, job.retries, job.retry_failed) == (False, 0, False)
    assert job.lines_in_flight(engine) == 7
    assert (engine.model, server.max_body_mb, server.api_key) == ("some/model", 2, ())
    assert signals == (signal.SIGINT, signal.SIGTERM)
    assert capsys.readouterr().out.splitlines() == [
        "3 lines: 1 succeeded, 2 failed, 1 of them in earlier runs",
        "  400                  2",
        "10 prompt tokens, 5 answer tokens",
        "2.0 s, 1.0 lines a second",
    ]


@pytest.mark.parametrize(("number", "code"), [(None, 1), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_status_says_what_ended_it(asked, source, capsys, number, code):
    asked[1].append(Unfinished.of("The disk is full.", 4, 9, number))
    assert main(["run-batch", "-i", "in.jsonl", "-o", "out.jsonl"]) == code
    assert (
        "tilewise: The disk is full. 4 of 9 lines are done; the same command goes on with the others."
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-o", "out"], 2, "-i FILE (--input-file) is needed"),
        (["-i", "in.jsonl"], 2, "-o FILE (--output-file) is needed"),
        (["-i", "in.jsonl", "-o", "out", "--keep-oder"], 2, "There is no flag --keep-oder. Did you mean --keep-order?"),
        (["-i", "none", "-o", "out"], 1, "input_file: there is no file none"),
        (["-i", ".", "-o", "out"], 1, "input_file must be a file with a request a line, . is none"),
        (["-i", "-", "-o", "out"], 1, "input_file must be a file, got -"),
        (["-i", "in.jsonl", "-o", "-"], 1, "output_file must be a file, got -"),
        (["-i", "in.jsonl", "-o", "."], 1, "output_file must be a file, . is none"),
        (["-i", "in.jsonl", "-o", "/dev/null"], 1, "output_file must be a file, /dev/null is none"),
        (["-i", "in.jsonl", "-o", "in.jsonl"], 1, "output_file is the input, in.jsonl"),
        (["-i", "in.jsonl", "-o", "no/out"], 1, "output_file: there is no folder"),
        (["-i", "in.jsonl", "-o", "out", "--max-in-flight", "0"], 1, "max_in_flight must be 1 or above, got 0"),
        (["-i", "in.jsonl", "-o", "out", "--retries", "-1"], 1, "retries must be 0 or above, got -1"),
        (["-i", "in.jsonl", "-o", "out", "--port", "9"], 1, "port=9 has no effect without enable_metrics"),
        (["-i", "in.jsonl", "-o", "out", "-tp", "2", "--nnodes", "2"], 1, "nnodes=2"),
    ],
)
def test_mistakes_are_one_line_and_load_nothing(asked, source, capsys, words, code, message):
    assert main(["run-batch", *words]) == code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert asked[0] == []


def test_what_is_about_connections_is_taken_and_named(source):
    words = (
        "-i in.jsonl -o out --api-key x --stream-interval 2 --timeout-keep-alive 3 --output-tmp-dir t --max-inflight 3"
    )
    job, settings = read_job(RUN_BATCH.read(words.split()))
    assert job.max_in_flight == 3
    assert settings.server.api_key == ()
    for name in ("api-key", "stream-interval", "timeout-keep-alive", "output-tmp-dir"):
        assert sum(line.startswith(f"--{name}: ") for line in settings.lines) == 1
    assert "x" not in settings.given.values()


def test_an_output_of_another_input_costs_no_model(source):
    done = [{"id": f"batch_req_1_{7:016x}", "custom_id": "a", "response": None, "error": {"code": "x", "message": ""}}]
    output = write_lines(Path("out.jsonl"), done)
    before = output.read_bytes()
    words = ["run-batch", "-i", "in.jsonl", "-o", "out.jsonl", "--model", "/no/such/model"]
    assert main(words) == 1
    assert output.read_bytes() == before
    with pytest.raises(tilewise.TilewiseError, match="the output belongs to another input"):
        run_batch("in.jsonl", "out.jsonl", "/no/such/model")


def test_what_is_done_needs_no_model(source, capsys):
    """Not even one that could be loaded."""
    rows = [
        {"id": name, "custom_id": "a", "response": {"status_code": 200, "request_id": "", "body": {}}, "error": None}
        for name in ids_of(source)
    ]
    write_lines(Path("out.jsonl"), rows)
    summary = run_batch("in.jsonl", "out.jsonl", "/no/such/model")
    assert (summary.lines, summary.succeeded, summary.earlier) == (2, 2, 2)


def ids_of(source: Path) -> list[str]:
    return [line.id for line in read_lines(source, 10_000)]


def test_an_unknown_keyword_is_refused(source):
    with pytest.raises(TypeError, match=r"A batch run has no option 'max_num_seq'. Did you mean max_num_seqs\?"):
        run_batch("in.jsonl", "out.jsonl", max_num_seq=3)
    with pytest.raises(ValueError, match="host has no effect"):
        run_batch("in.jsonl", "out.jsonl", host="h")


def test_help(capsys):
    assert main(["run-batch", "--help"]) == 0
    assert "examples:" in capsys.readouterr().out
    assert main(["run-batch", "--help=all"]) == 0
    whole = capsys.readouterr().out
    assert all(flag.dashed in whole for flag in RUN_BATCH.flags if flag.group)
    assert "--host" not in whole
    assert "--request-timeout" in whole


def test_a_file_of_flags(source):
    Path("flags.yml").write_text("max_num_seqs: 3\nmodel: some/model\n")
    _, settings = read_job(RUN_BATCH.read(["-i", "in.jsonl", "-o", "out.jsonl", "--config", "flags.yml"]))
    assert (settings.engine.max_num_seqs, settings.engine.model) == (3, "some/model")
