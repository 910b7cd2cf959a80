"""What is found in an output that is there already, and what is refused."""

from __future__ import annotations

import json

import pytest

from tests.jobs.lines import in_any_order, request, results, run, write_lines
from tilewise.jobs.input import line_digests
from tilewise.jobs.output import OtherInput, scan, sort_output, without_failed


@pytest.fixture
def files(tmp_path):
    """An input of ten lines, and its whole output, in another order."""
    source = write_lines(tmp_path / "in.jsonl", [*(request(f"a{i}") for i in range(8)), "[1]", "no JSON"])
    run(source, tmp_path / "out.jsonl", in_any_order(1))
    assert [row["id"].split("_")[2] for row in results(tmp_path / "out.jsonl")] != [f"{i}" for i in range(1, 11)]
    return source, tmp_path / "out.jsonl"


def test_a_whole_output(files):
    source, output = files
    found = scan(output, line_digests(source))
    assert found.finished == b"\1" * 10
    assert (found.summary.succeeded, dict(found.summary.failed)) == (8, {"invalid_json_line": 2})
    assert (found.summary.prompt_tokens, found.summary.completion_tokens) == (16, 24)
    assert not found.in_order
    assert not found.torn


def test_no_output_yet(files):
    source, output = files
    output.unlink()
    found = scan(output, line_digests(source))
    assert found.finished == bytes(10)
    assert found.summary.lines == 0
    assert not output.exists()


@pytest.mark.parametrize("end", [b"\0" * 4096, b"\0" * 9 + b"\n", b'{"id": "batch', b"{", b'{"id": "batch_req_9", \n'])
def test_a_broken_last_line_is_cut_off(files, end):
    source, output = files
    whole = output.read_bytes()
    output.write_bytes(whole + end)
    found = scan(output, line_digests(source))
    assert found.torn == len(end)
    assert output.read_bytes() == whole


FOREIGN = [
    *(b"my diary", b"my diary\n", b"{}\n", b"\n", b'"text"\n', b"[" * 100_000 + b"\n"),
    b'{"id": "vllm-1", "custom_id": "a", "response": null, "error": "x"}\n',
    b'{"id": "batch_req_0_0123456789abcdef", "custom_id": "a", "response": null, "error": {"code": "a"}}\n',
    b'{"id": "batch_req_1_0123456789abcdef"}\n',
]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("place", ["alone", "between", "at the end"])
def test_what_is_not_ours_stays_as_it_is(files, content, place):
    source, output = files
    whole = output.read_bytes()
    content = {"alone": content, "between": whole + content + whole, "at the end": whole + content}[place]
    output.write_bytes(content)
    with pytest.raises(OtherInput, match=r"line \d+ "):
        scan(output, line_digests(source))
    assert output.read_bytes() == content


@pytest.mark.parametrize("change", ["other first line", "a line less", "lines moved"])
def test_another_input_is_refused(files, change):
    source, output = files
    lines = source.read_text().splitlines()
    changed = {
        "other first line": [json.dumps(request("b")), *lines[1:]],
        "a line less": lines[:-1],
        "lines moved": [lines[1], lines[0], *lines[2:]],
    }[change]
    whole = output.read_bytes()
    write_lines(source, changed)
    with pytest.raises(OtherInput, match=r"the output belongs to another input, or the input has changed"):
        scan(output, line_digests(source))
    assert output.read_bytes() == whole


def test_lines_added_to_the_input_are_what_is_left(files):
    source, output = files
    with source.open("a") as file:
        file.write(json.dumps(request("new")) + "\n")
    assert scan(output, line_digests(source)).finished == b"\1" * 10 + b"\0"


def test_a_result_that_is_there_twice_is_refused(files):
    source, output = files
    first = output.read_bytes().splitlines(keepends=True)[0]
    with output.open("ab") as file:
        file.write(first)
    with pytest.raises(OtherInput, match=r"line 11 answers request \d+ of the input once more"):
        scan(output, line_digests(source))


def test_failed_lines_can_be_taken_out(files):
    source, output = files
    output.chmod(0o640)
    kept = [row for row in results(output) if row["error"] is None]
    without_failed(output)
    assert results(output) == kept
    assert output.stat().st_mode & 0o777 == 0o640
    assert scan(output, line_digests(source)).finished == b"\1" * 8 + b"\0\0"
    assert {path.name for path in output.parent.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_an_output_can_be_put_in_order(files):
    source, output = files
    before = sorted(output.read_bytes().splitlines())
    sort_output(output, 10)
    assert [int(row["id"].split("_")[2]) for row in results(output)] == list(range(1, 11))
    assert sorted(output.read_bytes().splitlines()) == before
    assert scan(output, line_digests(source)).in_order
