"""`tilewise doctor URL MODEL` against real servers: one that is right, and others that were started wrong."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest

from tests.called import called
from tests.served import Served, served
from tests.tiny import SPECS, TWINS, write_original
from tests.weights.broken import change_config
from tilewise.doctor.golden import DEMO
from tilewise.doctor.prompts import Cause
from tilewise.doctor.server import NAMES, remedy

LOOKS = 4
PICTURES = 12


def examined(url: str, model: str, *flags: str, status: int = 1) -> dict[str, Any]:
    found = called("doctor", f"{url}/v1", model, "--json", *flags)
    assert found.returncode == status, found.stderr or found.stdout
    report: dict[str, Any] = json.loads(found.stdout)
    return report


def verdicts(report: dict[str, Any], part: str) -> dict[str, str]:
    return {probe["probe"]: probe["verdict"] for probe in report["probes"] if probe["part"] == part}


def findings(report: dict[str, Any]) -> str:
    return " | ".join(" ".join([one["text"], *one["remedies"]]) for one in report["findings"])


def test_a_server_of_the_same_checkpoint_is_right(demo_url: str) -> None:
    report = examined(demo_url, "demo", status=0)
    assert report["server"] == "tilewise"
    assert {probe["verdict"] for probe in report["probes"]} == {"right"}
    assert len(verdicts(report, "pictures")) == PICTURES
    assert len(verdicts(report, "look")) == LOOKS
    assert report["findings"] == []


def test_its_table_says_so(demo_url: str) -> None:
    found = called("doctor", f"{demo_url}/v1", "demo", "--num-frames", "32")
    assert found.returncode == 0
    assert "video, 32 frames" in found.stdout
    assert found.stdout.splitlines()[-1] == "This server makes the model's own prompts."


def test_other_frames_of_a_video_are_told_apart_from_other_tiles(demo_url: str) -> None:
    report = examined(demo_url, "demo", "--num-frames", "4")
    assert [probe["probe"] for probe in report["probes"] if probe["verdict"] == "off"] == ["video, 4 frames"]
    assert "it takes other frames of a video" in findings(report)
    assert "--num-frames" in findings(report)


@pytest.fixture(scope="module")
def cut_otherwise() -> Iterator[Served]:
    wrong = ("--mm-processor-kwargs", '{"max_dynamic_patch": 6, "use_thumbnail": false}')
    with served("demo", *wrong, "--no-exif-orientation", "--api-key", "sesame") as server:
        yield server


def test_other_tiles_no_thumbnail_and_pictures_that_lie_on_their_side(cut_otherwise: Served) -> None:
    report = examined(cut_otherwise.url, "demo", "--api-key", "sesame")
    assert set(verdicts(report, "text").values()) == {"right"}
    assert verdicts(report, "pictures")["one tile"] == "right"
    assert verdicts(report, "pictures")["large"] == "off"
    looks = verdicts(report, "look")
    assert looks.pop("pictures are turned upright (EXIF)") == "off"
    assert set(looks.values()) == {"right"}
    said = findings(report)
    assert "at most 6 tiles (max_dynamic_patch=6) and there is no thumbnail" in said
    assert '--mm-processor-kwargs \'{"max_dynamic_patch": 12, "use_thumbnail": true}\'' in said


def test_the_same_server_is_right_if_that_was_meant(cut_otherwise: Served) -> None:
    meant = ("--mm-processor-kwargs", '{"max_dynamic_patch": 6, "use_thumbnail": false}')
    report = examined(cut_otherwise.url, "demo", "--api-key", "sesame", *meant)
    assert set(verdicts(report, "pictures").values()) == {"right"}


def test_a_key_that_lacks_is_asked_for(cut_otherwise: Served) -> None:
    found = called("doctor", f"{cut_otherwise.url}/v1", "demo")
    assert found.returncode == 1
    assert "Give the key with --api-key, or in VLLM_API_KEY." in found.stderr


def test_another_template_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "hermes"
    shutil.copytree(DEMO / "checkpoint", folder)
    change_config(folder, template="Hermes-2")
    with served(str(folder)) as server:
        report = examined(server.url, "demo")
        table = called("doctor", f"{server.url}/v1", "demo").stdout
    assert verdicts(report, "text")["one question"] == "off"
    assert verdicts(report, "text")["system message"] == "off"  # a line break less behind each turn
    assert set(verdicts(report, "pictures").values()) == {"right"}
    assert "the template is that of Hermes-2" in findings(report)
    assert "its template is built in" in findings(report)
    assert "text: one question: off" in table
    assert "in place of" in table


def test_another_twins_tokenizer_is_told(tmp_path: Path) -> None:
    other = write_original(tmp_path / "other", TWINS["InternVL2_5-8B"])
    own = write_original(tmp_path / "own", SPECS["qwen2-300m"])
    with served(str(other)) as server:
        report = examined(server.url, str(own))
    assert "off" in verdicts(report, "text").values()
    assert report["findings"]


class WithoutUsage(BaseHTTPRequestHandler):
    """A server of OpenAI's protocol that counts nothing, as some proxies are."""

    answer: ClassVar[dict[str, Any]] = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "A"}, "finish_reason": "length"}]
    }

    def do_GET(self) -> None:
        self._say(200, {"object": "list", "data": [{"id": "some", "owned_by": "somebody"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        known = self.path == "/v1/chat/completions"
        self._say(200 if known else 404, self.answer if known else {"error": {"message": "no such route"}})

    def _say(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class TextAlone(WithoutUsage):
    """One that counts, and drops pictures."""

    answer: ClassVar[dict[str, Any]] = {**WithoutUsage.answer, "usage": {"prompt_tokens": 23}}


@contextmanager
def listening(handler: type[WithoutUsage]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_without_usage_it_cannot_be_told() -> None:
    with listening(WithoutUsage) as url:
        report = examined(url, "demo")
        table = called("doctor", f"{url}/v1", "demo").stdout
    assert report["server"] == "unknown"
    assert {probe["verdict"] for probe in report["probes"]} == {"not told"}
    assert "its answers have no usage.prompt_tokens" in table
    assert table.splitlines()[-1] == "It cannot be told whether this server asks right."


def test_pictures_that_take_no_tokens_are_lost() -> None:
    with listening(TextAlone) as url:
        report = examined(url, "demo")
    assert set(verdicts(report, "pictures").values()) == {"off"}
    assert "they are lost on the way" in findings(report)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "http://127.0.0.1:1/v1"], "The URL comes first."),
        (["http://127.0.0.1:1/v1"], "MODEL is missing"),
        (["demo"], "URL is missing"),
        (["http://127.0.0.1:1/v1", "demo", "more"], "and not more"),
        (["http://127.0.0.1:1/v1", "demo", "--golden"], "--golden is about this machine"),
        (["http://127.0.0.1:1/v1", "demo", "--timeout", "0"], "--timeout must be above 0"),
    ],
)
def test_a_line_that_cannot_be_read_says_how(words: list[str], said: str) -> None:
    found = called("doctor", *words)
    assert found.returncode == 2
    assert said in found.stderr


def test_nobody_at_home_is_one_line() -> None:
    found = called("doctor", "http://127.0.0.1:9/v1", "demo")
    assert found.returncode == 1
    assert "No server answers at http://127.0.0.1:9/v1" in found.stderr


def test_every_server_has_a_remedy_for_every_cause() -> None:
    for kind, cause in itertools.product(NAMES, get_args(Cause)):
        assert remedy(cause, kind, "{}")
