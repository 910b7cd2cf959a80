"""evalscope: `evalscope perf` with pictures that it makes, `evalscope eval` on questions of one's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKPOINT = Path(__file__).parents[3] / "src" / "tilewise" / "demo" / "checkpoint"


def evalscope(*arguments):
    command = [Path(sys.executable).with_name("evalscope"), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
def tokenizer(tmp_path):
    """The demo's, with a chat template beside it, as checkpoints of today have one: evalscope counts by it."""
    folder = shutil.copytree(CHECKPOINT, tmp_path / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    template = "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}<|im_end|>\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_perf_with_pictures(url, tokenizer, tmp_path):
    server = ["--model", "demo", "--api", "openai", "--url", f"{url}/chat/completions", "--outputs-dir", tmp_path]
    load = ["--number", 4, "--parallel", 2, "--min-tokens", 4, "--max-tokens", 4, "--stream"]
    data = ["--dataset", "random_vl", "--image-width", 100, "--image-height", 100, "--tokenizer-path", tokenizer]
    evalscope("perf", *server, *load, *data, "--min-prompt-length", 20, "--max-prompt-length", 20, "--no-timestamp")
    (summary,) = tmp_path.rglob("benchmark_summary.json")
    measured = json.loads(summary.read_text())
    assert (measured["Success Requests"], measured["Failed Requests"], measured["Stream Requests"]) == (4, 0, 4)
    assert (measured["Avg Output Tokens"], measured["Avg Input Tokens"] > 16) == (4, True)
    assert measured["Avg TTFT (ms)"] > 0


def test_eval_of_questions(url, sign, shapes, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    questions = {(sign, "What is the word?"): "cat", (shapes, "Which shape is on the left?"): "yellow circle"}
    with (data / "signs.jsonl").open("w") as file:
        for (picture, question), answer in questions.items():
            content = [
                {"type": "image_url", "image_url": {"url": str(picture)}},
                {"type": "text", "text": question},
            ]
            file.write(json.dumps({"messages": [{"role": "user", "content": content}], "answer": answer}) + "\n")
    of = {"general_vqa": {"local_path": str(data), "subset_list": ["signs"]}}
    model = ["--model", "demo", "--eval-type", "openai_api", "--api-url", url, "--api-key", "none"]
    asked = ["--generation-config", json.dumps({"temperature": 0, "max_tokens": 20}), "--work-dir", tmp_path / "out"]
    evalscope("eval", *model, "--datasets", "general_vqa", "--dataset-args", json.dumps(of), *asked)
    (predictions,) = (tmp_path / "out").rglob("predictions/*/*.jsonl")
    lines = sorted(map(json.loads, predictions.open()), key=lambda line: line["index"])  # written as they end
    said = [line["model_output"]["choices"][0]["message"]["content"] for line in lines]
    assert said == list(questions.values())
