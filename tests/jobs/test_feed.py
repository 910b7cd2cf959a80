"""The run without an engine: each line is answered once, whatever happened before."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.jobs.lines import answer, ids, in_any_order, request, results, run, write_lines
from tilewise.jobs.input import InputLine, Task
from tilewise.jobs.output import BatchResult, CannotWrite, OtherInput

LINES = [
    *(request(f"a{i}") for i in range(5)),
    *("[1]", "no JSON", request("a3"), request("猫", "/tokenize"), request("\ud800"), request(None)),
    *(request("long", body={"prompt": "x" * 5000}), request("s", body={"prompt": "", "stream": True})),
    *(request(f"b{i}") for i in range(5)),
]


def source_of(folder: Path) -> Path:
    return write_lines(folder / "in.jsonl", [line if isinstance(line, str) else json.dumps(line) for line in LINES])


def once_each(output: Path, count: int = len(LINES)) -> None:
    assert sorted(int(row["id"].split("_")[2]) for row in results(output)) == list(range(1, count + 1))


def test_every_line_has_a_result(tmp_path):
    source, output = source_of(tmp_path), tmp_path / "out.jsonl"
    run(source, output, in_any_order(0), keep_order=True)
    rows = results(output)
    once_each(output)
    wanted = [
        *(f"a{i}" for i in range(5)),
        None,
        None,
        "a3",
        "猫",
        "\ud800",
        None,
        None,
        "s",
        *(f"b{i}" for i in range(5)),
    ]
    assert ids(rows) == wanted
    codes = {6: "invalid_json_line", 5: "invalid_json_line", 7: "duplicate_custom_id", 10: "invalid_custom_id",
             11: "line_too_long", 12: "stream_not_possible"}  # fmt: skip
    assert {number: row["error"]["code"] for number, row in enumerate(rows) if row["error"]} == codes
    assert "Line 8 has the custom_id 'a3' of line 4" in rows[7]["error"]["message"]
    for row in rows:
        assert set(row) == {"id", "custom_id", "response", "error"}
        assert (row["response"] is None) is (row["error"] is not None)
    assert rows[8]["response"] == {
        "status_code": 200, "request_id": "r",
        "body": {"said": "猫", "usage": {"prompt_tokens": 2, "completion_tokens": 3}},
    }  # fmt: skip
    assert "猫" in output.read_text(encoding="utf-8")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.booleans(), st.integers(1, 6), st.integers(0, 99))
def test_cut_anywhere_it_goes_on(tmp_path, data, keep_order, in_flight, seed):
    source, output = source_of(tmp_path), tmp_path / "out.jsonl"
    output.unlink(missing_ok=True)
    run(source, output, in_any_order(seed), in_flight=in_flight, keep_order=keep_order)
    whole = output.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole)))
        output.write_bytes(whole[:at])
        kept = whole[:at].count(b"\n")
        asked = []

        async def ask(line: InputLine, task: Task, asked: list[int] = asked) -> BatchResult:
            asked.append(line.number)
            await asyncio.sleep(0)
            return answer(line, task)

        run(source, output, ask, in_flight=in_flight, keep_order=keep_order)
        once_each(output)
        assert len(asked) <= len(LINES) - kept
        before, whole = whole, output.read_bytes()
        assert whole.startswith(b"".join(before.splitlines(keepends=True)[:kept]))


def test_no_more_is_in_flight_than_may_be_in_order_or_not(tmp_path):
    for keep_order in (False, True):
        source = write_lines(tmp_path / "in.jsonl", [request(f"{i}") for i in range(60)])
        output = tmp_path / f"{keep_order}.jsonl"
        inside, most = 0, 0
        jitter = in_any_order(3)

        async def ask(line: InputLine, task: Task) -> BatchResult:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            result = await jitter(line, task)  # noqa: B023
            inside -= 1
            return result

        run(source, output, ask, in_flight=7, keep_order=keep_order)
        assert 2 < most <= 7
        assert (ids(results(output)) == [f"{i}" for i in range(60)]) is keep_order


def test_an_input_that_changes_on_the_way_is_noticed(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [request(f"{i:04}") for i in range(2000)])
    output = tmp_path / "out.jsonl"

    def changing(change: str):
        async def ask(line: InputLine, task: Task) -> BatchResult:
            if line.number == 1:
                text = source.read_text()
                source.write_text(text.replace('"1999"', '"xxxx"') if change == "changed" else text[: len(text) // 2])
            return answer(line, task)

        return ask

    with pytest.raises(OtherInput, match="Line 2000 of the input has changed"):
        run(source, output, changing("changed"))
    output.unlink()
    source = write_lines(tmp_path / "in.jsonl", [request(f"{i:04}") for i in range(2000)])
    with pytest.raises(OtherInput, match=r"has lost lines|has changed"):
        run(source, output, changing("shorter"))


def test_a_full_disk_loses_nothing(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [request(f"{i:03}") for i in range(100)])
    output = tmp_path / "out.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(CannotWrite, match=r"out.jsonl cannot be written: File too large"):
            run(source, output, in_any_order(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert 4000 < output.stat().st_size <= 5000
    assert output.read_bytes().endswith(b"\n"), "half a line was left behind"
    written = len(results(output))
    found = run(source, output, in_any_order(5))
    assert found.torn == 0
    once_each(output, 100)
    assert 0 < written < 100


def test_what_ends_an_asker_ends_the_run(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [request(f"{i}") for i in range(50)])
    output = tmp_path / "out.jsonl"

    async def ask(line: InputLine, task: Task) -> BatchResult:
        if line.number == 20:
            raise ZeroDivisionError
        return answer(line, task)

    with pytest.raises(ZeroDivisionError):
        run(source, output, ask)
    assert len(results(output)) < 50
    run(source, output, in_any_order(0))
    once_each(output, 50)
