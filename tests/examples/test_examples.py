"""Every example, as a user runs it, against a real server on the demo model."""

from __future__ import annotations

import base64
import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.served import PICTURES, ROOT

EXAMPLES = ROOT / "examples"
PRINTED = {
    "one_image.py": "cat\n",
    "two_images.py": "Image-2\n",
    "streaming.py": "yellow circle\n45 prompt tokens, 3 answer tokens\n",
    "base64_image.py": "green\n",
    "video.py": "Image-2\n",
    "structured.py": "{'word': 'cat'}\n",
}
"""What the demo model knows, whole."""
ANSWERS = {
    "one_image.sh": "6",
    "local_file.sh": "红色",
    "two_images.sh": "3",
    "video.sh": "Image-2",
    "structured.sh": '"cat"',
}
OF_GUIDES = {
    "offline_chat.py": ("OpenGVLab/InternVL2-2B", 1),
    "single_image.py": ("OpenGVLab/InternVL3-8B", 1),
    "multiple_images.py": ("OpenGVLab/InternVL3-8B", 1),
    "batch_inference.py": ("OpenGVLab/InternVL3-8B", 3),
}
"""Scripts for NPUs -> the model that each loads, and the number of its answers."""
ADDRESS = "https://modelscope.oss-cn-beijing.aliyuncs.com/resource/qwen.png"
PLACES = ("left", "right", "top", "bottom")


def run(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_python(name: str, url: str, *more: str) -> str:
    """Run an example that asks a server: the first as a user does, the others here, where the client is loaded."""
    words = [str(EXAMPLES / name), "--base-url", f"{url}/v1", *more]
    if name == next(iter(PRINTED)):
        return run(sys.executable, *words)
    out = io.StringIO()
    with patch.object(sys, "argv", words), patch.dict(os.environ, NO_PROXY="127.0.0.1"), redirect_stdout(out):
        runpy.run_path(words[0], run_name="__main__")
    return out.getvalue()


def run_curl(name: str, url: str) -> str:
    return run(str(EXAMPLES / "curl" / name), f"{url}/v1")


@pytest.mark.parametrize("name", PRINTED)
def test_in_python(demo_url, name):
    assert run_python(name, demo_url) == PRINTED[name]


def test_the_drawing_is_what_is_looked_at(demo_url):
    assert run_python("base64_image.py", demo_url, "--color", "blue") == "blue\n"


def test_several_turns(demo_url):
    lines = run_python("several_turns.py", demo_url).splitlines()
    answers = ("Where is the orange cross? right (", "And where is the square? top right (",
               "And which shape is on the left? black diamond (")  # fmt: skip
    for line, answer in zip(lines, answers, strict=True):
        assert line.startswith(answer)
    assert not lines[2].partition("(")[2].startswith("0 "), "the turns share a beginning, which was not cached"


def test_a_required_call_follows_its_schema(demo_url):
    assert run_python("tools.py", demo_url) in [
        f"move_camera: The camera moves to the {place}.\n" for place in PLACES
    ], "the demo model was not trained on tools: the place may be any, the form may not"


def test_the_likeliest_token_comes_first(demo_url):
    first, *_ = run_python("logprobs.py", demo_url).splitlines()
    names = first.split()
    assert names[0] == "'cat'"
    probabilities = [float(value) for value in names[1::2]]
    assert len(probabilities) == 3
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.5 < probabilities[0] <= 1


def test_offline():
    lines = run(sys.executable, str(EXAMPLES / "offline.py")).splitlines()
    assert [line.split(" (")[0].strip() for line in lines if line.startswith("  ")] == [
        *("cat", "How many diamonds are in the picture? 6", "Which color do the shapes have? black"),
        *("Image-2", "3"),
    ]


def test_a_batch(tmp_path):
    printed = run(sys.executable, str(EXAMPLES / "batch.py"), "--folder", str(tmp_path))
    assert printed.splitlines()[:4] == ["word: cat", "colour: yellow", "count: 6", "3 of 3 lines succeeded"]
    assert {path.name for path in tmp_path.iterdir()} == {"requests.jsonl", "answers.jsonl", "answers.jsonl.lock"}


@pytest.mark.parametrize("name", OF_GUIDES)
def test_a_guide_for_npus(tmp_path, name):
    """The model becomes the demo and an address a picture here, as nothing is fetched; all else stays as it is. What
    the demo says to these questions counts for nothing.
    """
    model, answers = OF_GUIDES[name]
    text = (EXAMPLES / "ascend" / name).read_text(encoding="utf-8")
    assert text.count(f'"{model}"') == 1
    assert (ADDRESS in text) == (name == "offline_chat.py")
    here = "data:image/png;base64," + base64.b64encode((PICTURES / "reading_text.png").read_bytes()).decode()
    script = tmp_path / name
    script.write_text(text.replace(model, "demo").replace(ADDRESS, here), encoding="utf-8")
    out = io.StringIO()
    with patch.dict(os.environ, VLLM_ALLOW_LONG_MAX_MODEL_LEN="1"), redirect_stdout(out):
        runpy.run_path(str(script), run_name="__main__")
    lines = [line for line in out.getvalue().splitlines() if line and not line.startswith("Question ")]
    assert len(lines) == answers


@pytest.mark.parametrize("name", ANSWERS)
def test_with_curl(demo_url, name):
    [choice] = json.loads(run_curl(name, demo_url))["choices"]
    assert choice["message"]["content"] == ANSWERS[name]
    assert (choice["logprobs"] is not None) == (name == "structured.sh")


def test_streaming_with_curl(demo_url):
    lines = run_curl("streaming.sh", demo_url).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == "yellow circle"
    assert chunks[-1]["usage"]["completion_tokens"] == 3


def test_a_call_with_curl(demo_url):
    [choice] = json.loads(run_curl("tools.sh", demo_url))["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "move_camera"
    assert json.loads(call["function"]["arguments"])["place"] in PLACES


def test_a_refusal_is_shown(demo_url, tmp_path):
    """curl must not hide what the server says."""
    script = tmp_path / "examples" / "curl" / "video.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes((EXAMPLES / "curl" / "video.sh").read_bytes())
    done = subprocess.run(["sh", str(script), f"{demo_url}/v1"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert json.loads(done.stdout)["error"]["code"] == 400


def test_the_list_is_whole():
    named = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    scripts = [path.relative_to(EXAMPLES) for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh")]
    for path in scripts:
        assert f"({path.as_posix()})" in named
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in scripts if f'"{path.name}"' not in tested] == []
