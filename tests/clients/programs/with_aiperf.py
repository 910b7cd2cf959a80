"""NVIDIA AIPerf: `aiperf profile` with pictures that it makes and with a file of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOKENIZER = Path(__file__).parents[3] / "src" / "tilewise" / "demo" / "checkpoint"


@pytest.fixture
def profile(url, tmp_path):
    """Runs the command; what it measured, by name. It would look even a folder's name up at a hub."""

    def run(*flags):
        command = [Path(sys.executable).with_name("aiperf"), "profile", "-m", "demo", "--url", url.removesuffix("/v1")]
        command += ["--tokenizer", TOKENIZER, "--artifact-dir", tmp_path, "--ui", "none", "--concurrency", "2"]
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_HOME": str(tmp_path / "hub")}
        ended = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return json.loads((tmp_path / "profile_export_aiperf.json").read_text())

    return run


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_made_up_requests(profile, endpoint):
    pictures = ["--image-batch-size", "1", "--image-width-mean", "100", "--image-height-mean", "100"]
    lengths = ["--synthetic-input-tokens-mean", "20", "--output-tokens-mean", "4", "--use-server-token-count"]
    exactly = [] if endpoint == "responses" else ["--extra-inputs", "min_tokens:4"]
    measured = profile(
        "--endpoint-type", endpoint, "--streaming", "--request-count", "4", "--extra-inputs", "temperature:0",
        *exactly, *lengths, *([] if endpoint == "completions" else pictures),
    )  # fmt: skip
    assert measured["error_summary"] == []
    assert measured["request_count"]["avg"] == 4
    assert measured["time_to_first_token"]["avg"] > 0
    if exactly:
        assert measured["total_osl"]["avg"] == 16
    if endpoint != "completions":
        assert measured["num_images"]["avg"] == 1
        assert measured["input_sequence_length"]["avg"] > 16


@pytest.mark.parametrize("streaming", [[], ["--streaming", "--use-server-token-count", "--per-chunk-usage"]])
def test_a_file_of_questions(profile, sign, tmp_path, streaming):
    """In which one asks for the word in the demo's picture."""
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"text": "What is the word?", "image": str(sign)}) + "\n")
    asked = ["--input-file", file, "--custom-dataset-type", "single_turn", "--request-count", "2"]
    measured = profile(*asked, *streaming, "--extra-inputs", "temperature:0", "--export-level", "raw")
    assert measured["error_summary"] == []
    assert measured["request_count"]["avg"] == 2
    (raw,) = tmp_path.glob("*raw*.jsonl")
    assert raw.read_text().count("cat") >= 2


def test_a_conversation(profile):
    """Each turn brings the answer before, as it came."""
    turns = ["--conversation-num", "1", "--conversation-turn-mean", "3", "--conversation-turn-stddev", "0"]
    lengths = ["--synthetic-input-tokens-mean", "20", "--output-tokens-mean", "4"]
    measured = profile("--endpoint-type", "chat", "--extra-inputs", "min_tokens:4", *turns, *lengths)
    assert measured["error_summary"] == []
    assert measured["request_count"]["avg"] == 3
