"""guidellm: `guidellm run` with made-up texts and pictures, and with a file of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOKENIZER = Path(__file__).parents[3] / "src" / "tilewise" / "demo" / "checkpoint"


@pytest.fixture
def benchmark(url, tmp_path):
    """Runs the command; every request with its answer."""

    def run(route, data):
        report = tmp_path / "report.json"
        command = [Path(sys.executable).with_name("guidellm"), "run", "--disable-console", "--data", data]
        command += ["--backend", f"kind=openai_http,target={url.removesuffix('/v1')},request_format={route}"]
        command += ["--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=4"]
        command += ["--tokenizer", f"kind=hf_auto,model={TOKENIZER}", "--output", f"kind=json,path={report}"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
        assert (len(requests["successful"]), requests["errored"]) == (4, [])
        return requests["successful"]

    return run


def test_texts(benchmark):
    answers = benchmark("/v1/completions", "kind=synthetic_text,prompt_tokens=20,output_tokens=4")
    assert [answer["output_tokens"] for answer in answers] == [4] * 4


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses"])
def test_pictures(benchmark, route):
    answers = benchmark(route, "kind=synthetic_image,width=100,height=100,output_tokens=4")
    assert all(answer["prompt_tokens"] > 16 for answer in answers)
    assert [answer["output_tokens"] for answer in answers] == [4] * 4


def test_a_file_of_questions(benchmark, sign, tmp_path):
    """In which one asks for the word in the demo's picture."""
    file = tmp_path / "questions.jsonl"
    file.write_text((json.dumps({"prompt": "What is the word?", "image": str(sign)}) + "\n") * 4)
    answers = benchmark("/v1/chat/completions", f"kind=json_file,path={file}")
    assert [answer["output"] for answer in answers] == ["cat"] * 4
