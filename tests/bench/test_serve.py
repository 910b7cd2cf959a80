"""`tilewise bench serve` as a user runs it, against a real server of the demo model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.test_client import free_port
from tests.bench.test_figures import figures
from tests.called import called
from tests.served import PICTURES, Served, served
from tilewise import host
from tilewise.bench.load import Arrivals, LoadLevel
from tilewise.bench.results import x_axis
from tilewise.cli import main

SHORT = ("--random-input-len", "20", "--random-output-len", "4")


def command(url: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "tilewise", "bench", "serve", "--base-url", url, *flags]


def bench(url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return called("bench", "serve", "--base-url", url, *flags)


def result(folder: Path) -> dict:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_the_guides_command(demo_url, tmp_path):
    """That of a guide to InternVL on vLLM, shortened: text of random tokens to /v1/completions, at a rate."""
    guide = "--dataset-name random --random-input 200 --num-prompts 8 --request-rate 20 --save-result --result-dir"
    done = bench(demo_url, *guide.split(), str(tmp_path), "--random-output-len", "6")
    assert done.returncode == 0, done.stderr
    assert "Request rate configured (RPS):           20.00" in done.stdout
    found = result(tmp_path)
    assert (found["completed"], found["failed"]) == (8, 0)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (1600, 48)
    assert (found["request_rate"], found["model_id"], found["backend"]) == (20.0, "demo", "openai")
    assert 0 < found["mean_ttft_ms"] <= found["mean_e2el_ms"]
    assert found["mean_first_chunk_ms"] <= found["mean_ttft_ms"]
    assert "ttfts" not in found


def test_pictures_and_all_that_is_said_about_them(demo_url, tmp_path):
    flags = (
        "--backend openai-chat --dataset-name random-mm --num-prompts 3 --save-result --save-detailed --num-warmups 1"
    )
    more = ["--random-mm-bucket-config", "{(200, 200, 1): 1}", "--goodput", "ttft:600000", "--metadata", "a=b"]
    more += ["--ready-check-timeout-sec", "30", "--temperature", "0", "--max-concurrency", "2"]
    done = bench(demo_url, *flags.split(), *more, *SHORT, "--result-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "---Pictures---" in done.stdout
    found = result(tmp_path)
    assert found["total_image_tokens"] == 16 * found["total_tiles"] > 0
    assert 0 < found["tiles_encoded"] <= found["total_tiles"]
    assert found["mean_preprocess_ms"] > 0
    assert found["request_goodput"] == found["request_throughput"]
    assert found["output_lens"] == [4, 4, 4]
    assert (found["a"], found["max_concurrency"], len(found["ttfts"])) == ("b", 2, 3)


def test_questions_of_a_file(demo_url, tmp_path):
    picture = str(PICTURES / "color_and_shape.png")
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"prompt": "What color is the circle?", "image_files": [picture]}))
    out = tmp_path / "out"
    flags = (
        "--backend openai-chat --dataset-name custom_mm --num-prompts 1 --temperature 0 --save-result --save-detailed"
    )
    done = bench(demo_url, *flags.split(), "--dataset-path", str(path), "--result-dir", str(out))
    assert done.returncode == 0, done.stderr
    assert result(out)["generated_texts"] == ["yellow"]


def test_several_rates_are_several_runs_and_one_picture(demo_url, tmp_path):
    done = bench(
        demo_url, "--request-rate", "20,40", "--num-prompts", "4", *SHORT, "--plot", str(tmp_path / "load.png"),
        "--append-result", "--result-dir", str(tmp_path), "--result-filename", "all.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in (tmp_path / "all.json").read_text().splitlines()]
    assert [run["request_rate"] for run in runs] == [20.0, 40.0]
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_each_rate_has_a_file_of_its_own(demo_url, tmp_path):
    flags = ("--save-result", "--result-filename", "mine.json", "--result-dir", str(tmp_path))
    done = bench(demo_url, "--request-rate", "20,40", "--num-prompts", "2", *SHORT, *flags)
    assert done.returncode == 0, done.stderr
    rates = {path.name: json.loads(path.read_text())["request_rate"] for path in tmp_path.iterdir()}
    assert rates == {"mine-20.0qps.json": 20.0, "mine-40.0qps.json": 40.0}
    assert f"Saved in {tmp_path / 'mine-20.0qps.json'}" in done.stdout


def test_a_full_disk_leaves_the_table(demo_url):
    flags = ["--num-prompts", "2", *SHORT, "--save-result", "--result-filename", "/dev/full"]
    done = bench(demo_url, *flags)
    assert done.returncode == 1
    assert "Successful requests:                     2" in done.stdout
    assert "could not be saved in /dev/full: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_request_that_is_refused_is_counted_and_named(demo_url):
    done = bench(demo_url, "--num-prompts", "2", *SHORT, "--extra-body", '{"top_p": 7}')
    assert done.returncode == 1
    assert "2 x HTTP 400: " in done.stdout
    assert "top_p" in done.stdout
    assert "HTTP 400:                                2" in done.stdout


def test_a_server_that_dies_ends_the_run(tmp_path):
    with served("--max-model-len", "512") as server:
        flags = ["--num-prompts", "4000", "--request-rate", "20", "--save-result", "--result-dir", str(tmp_path)]
        run = subprocess.Popen(
            command(server.url, *flags, *SHORT), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        kill_after_answers(server)
        out, error = run.communicate(timeout=120)  # all of it would take 200 seconds
    assert run.returncode == 1, error
    found = result(tmp_path)
    assert found["completed"] > 0
    assert found["completed"] + found["failed"] == 4000
    assert found["failures"]["not sent"] > 0
    assert f"Successful requests:                     {found['completed']}" in out
    assert "not sent: the server was gone" in out


def kill_after_answers(server: Served) -> None:
    ends = time.monotonic() + 100
    while server.metric("vllm:request_success_total") < 5:
        assert time.monotonic() < ends
        time.sleep(0.1)
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ([], 1, "does not say which model is served"),
        (["--profile"], 2, "--profile is refused: "),
        (["--dataset-name", "hf"], 2, "'hf' is refused: data sets are not downloaded"),
        (["--backend", "tgi"], 2, "'tgi' is refused: "),
        (["--dataset-name", "randm"], 2, "'randm' is none of random, "),
        (["--endpoint", "/v1/chat/completions"], 1, "is not what --backend openai speaks to"),
        (["--base-url", "localhost"], 1, "--base-url must begin with http"),
        (["--ramp-up-strategy", "linear"], 1, "go together"),
        (["--goodput", "ttft"], 1, "--goodput takes NAME:MILLISECONDS"),
        (["--metric-percentiles", "101"], 1, "--metric-percentiles takes numbers from 0 to 100"),
        (["--header", "x"], 1, "--header takes KEY=VALUE"),
        (["--request-rate", "0"], 1, "--request-rate must be above 0"),
        (["--max-concurrency", "0"], 1, "--max-concurrency must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(flags, status, message):
    done = bench(f"http://127.0.0.1:{free_port()}", *flags)
    assert done.returncode == status
    assert message in done.stderr.splitlines()[-1]


def test_without_matplotlib_there_is_no_run(monkeypatch, capsys):
    monkeypatch.setattr(host, "find_spec", lambda name: None)
    assert main(["bench", "serve", "--base-url", f"http://127.0.0.1:{free_port()}", "--plot", "load.png"]) == 1
    assert "--plot needs matplotlib" in capsys.readouterr().err


def test_the_load_is_what_the_runs_differ_in():
    def axis(*loads: LoadLevel) -> tuple[str, list[float]]:
        return x_axis([(load, figures()) for load in loads])

    assert axis(LoadLevel(Arrivals(1.0)), LoadLevel(Arrivals(2.0))) == ("requests a second", [1.0, 2.0])
    assert axis(LoadLevel(concurrency=2), LoadLevel(concurrency=4)) == ("requests at once, at most", [2.0, 4.0])
    assert axis(LoadLevel(), LoadLevel(Arrivals(2.0))) == ("requests a second, answered", [1.0, 1.0])
