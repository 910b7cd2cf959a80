"""`tilewise encode-server` and `tilewise serve --enable-mm-embeds`, in processes of their own, on the demo model."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch
from jsonschema import Draft202012Validator

from tests.encoded import demo_rows
from tests.served import Served, question, served
from tests.server.live import error_of
from tilewise import LLM, SamplingParams
from tilewise.server import encode, information
from tilewise.server.bodies import EncodeBody
from tilewise.server.openapi import document

ASKED, PICTURE, TILES = "What colour is the sign?", "stop_sign.jpg", 13
PART = question(ASKED, PICTURE)[0]["content"][0]
KEY = "secret"
OTHER = question(ASKED, "reading_text.png")[0]["content"][0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiles")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Iterator[Served]:
    flags = ("--encoder-cache-dir", str(folder), "--api-key", KEY, "--dtype", "float32")
    with served(*flags, "--limit-mm-per-prompt", '{"image": 3}', verb="encode-server") as found:
        found.client.headers["Authorization"] = f"Bearer {KEY}"
        yield found


def encoded(server: Served, *parts: Any, **fields: Any) -> httpx.Response:
    return server.client.post("/v1/encode", json={"input": list(parts), **fields})


def tensor_of(picture: dict[str, Any]) -> torch.Tensor:
    return safetensors.torch.load(base64.b64decode(picture["image_embeds"]))["image_embeds"]


def ask(llm: LLM, *parts: dict[str, Any]) -> tuple[str, int]:
    """Return the answer about pictures, and how many tokens the prompt took."""
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": ASKED}]}]
    (output,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
    return output.outputs[0].text, len(output.prompt_token_ids)


def test_what_it_gives_answers_as_the_picture_does(encoder: Served) -> None:
    answer = encoded(encoder, PART, OTHER).json()
    found = [(one["tiles"], one["image_tokens"], one["index"]) for one in answer["data"]]
    assert found == [(TILES, 16 * TILES, 0), (1, 16, 1)]
    assert answer["usage"] == {"image_tokens": 16 * (TILES + 1), "tiles": TILES + 1, "cached_tiles": 0}
    torch.testing.assert_close(tensor_of(answer["data"][0]), demo_rows(PICTURE), atol=1e-4, rtol=1e-4)
    parts = [{"type": "image_embeds", "image_embeds": one["image_embeds"]} for one in answer["data"]]
    with LLM("demo", enable_mm_embeds=True, dtype="float32", max_model_len=1024) as llm:
        expected = ask(llm, PART), ask(llm, PART, OTHER)
        tiles = llm.counters.tiles_encoded
        assert tiles == TILES + 1, "the picture that is asked about twice is kept"
        assert (ask(llm, parts[0]), ask(llm, *parts)) == expected
        assert llm.counters.tiles_encoded == tiles


def test_a_second_time_nothing_is_encoded(encoder: Served) -> None:
    first = encoded(encoder, PART).json()["data"][0]
    before = encoder.metric("tilewise:tiles_encoded_total")
    again = encoded(encoder, PART).json()
    assert again["usage"]["cached_tiles"] == TILES
    assert again["data"][0]["image_embeds"] == first["image_embeds"]
    assert encoder.metric("tilewise:tiles_encoded_total") == before


def test_requests_that_come_together_encode_a_tile_once(encoder: Served) -> None:
    before = encoder.metric("tilewise:tiles_encoded_total")
    part = question(ASKED, "cherry_blossom.jpg")[0]["content"][0]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: encoded(encoder, part, max_dynamic_patch=6).json(), range(8)))
    tiles = answers[0]["usage"]["tiles"]
    assert {answer["data"][0]["image_embeds"] for answer in answers} == {answers[0]["data"][0]["image_embeds"]}
    assert encoder.metric("tilewise:tiles_encoded_total") - before == tiles


def test_forms_of_input(encoder: Served) -> None:
    url = PART["image_url"]["url"]
    expected = encoded(encoder, PART).json()["data"][0]["image_embeds"]
    for value in (url, [url], PART, {"type": "input_image", "image_url": url}, {**PART, "uuid": "mine"}):
        answer = encoder.client.post("/v1/encode", json={"input": value, "model": "demo", "encoding_format": "base64"})
        assert answer.json()["data"][0]["image_embeds"] == expected
    small = encoded(encoder, {"type": "image_url", "image_url": {"url": url, "max_dynamic_patch": 1}}).json()
    assert small["usage"]["tiles"] == 1


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "field required"),
        ({"input": []}, "input", "input has 0 pictures, it must have 1 to 64"),
        ({"input": [PART] * 65}, "input", "input has 65 pictures"),
        ({"input": [PART] * 4}, None, r"At most 3 image(s) may be provided in one prompt. 4 were given"),
        ({"input": ["http://127.0.0.1/a.png"]}, "input[0]", "not a public address"),
        ({"input": [PART, "file:///etc/passwd"]}, "input[1]", "--allowed-local-media-path"),
        ({"input": ["data:image/png;base64,iVBORw0KGgo="]}, "input[0]", "is damaged: it begins as a PNG picture"),
        ({"input": [{"type": "text", "text": "a"}]}, "input[0]", "pictures alone are encoded, got 'text'"),
        ({"input": [{"type": "video_url", "video_url": {"url": "a"}}]}, "input[0]", "got 'video_url'"),
        ({"input": [{"type": "image_embeds", "image_embeds": "a"}]}, "input[0]", "got 'image_embeds'"),
        ({"input": [{"uuid": "unknown", "type": "image_url"}]}, "input[0]", "names no image that is kept"),
        ({"input": [PART] * 3, "max_dynamic_patch": 100}, None, "tiles, the limit of a request is 129: send several"),
        ({"input": [PART], "max_dynamic_patch": 0}, None, "need 1 <= min_dynamic_patch"),
        ({"input": [PART], "encoding_format": "float"}, "encoding_format", "base64"),
        ({"input": [PART], "dimensions": 5}, "dimensions", "Rows have the width of the model's"),
        ({"inputs": [PART]}, "inputs", "Did you mean input?"),
    ],
)  # fmt: skip
def test_what_cannot_be_encoded_is_named(encoder: Served, body: dict[str, Any], param: str | None, says: str) -> None:
    error = error_of(encoder.client.post("/v1/encode", json=body))
    assert says in error["message"]
    assert error["param"] == param


def test_names_without_effect(encoder: Served) -> None:
    answer = encoded(encoder, {**PART, "detail": "low", "who": 1}, user="me")
    assert answer.headers["x-tilewise-ignored"] == "user, input.who, input.image_url.detail"
    assert error_of(encoded(encoder, PART, model="other"), 404)


def test_routes(encoder: Served) -> None:
    assert encoder.client.get("/health").status_code == 200
    assert encoder.client.get("/v1/models").json()["data"][0]["id"] == "demo"
    assert (
        "This server encodes pictures" in error_of(encoder.client.post("/v1/chat/completions", json={}), 404)["message"]
    )
    assert encoder.client.get("/v1/encode").status_code == 405


def test_the_document_is_that_of_its_routes(encoder: Served) -> None:
    told = encoder.client.get("/openapi.json").json()
    assert told["paths"].keys() == document((encode.router, information.router))["paths"].keys()
    answer = encoder.client.post("/v1/encode", json=EncodeBody.examples["a picture"]).json()
    schema = {"$ref": "#/components/schemas/EncodedList", "components": told["components"]}
    Draft202012Validator(schema).validate(answer)


def test_the_engine_dies_and_comes_back(encoder: Served) -> None:
    encoded(encoder, PART)
    os.kill(encoder.engine_pid, signal.SIGKILL)
    assert encoder.logs("was ended by signal 9")
    error_of(encoded(encoder, PART), 503)
    deadline = time.monotonic() + 60
    while (answer := encoded(encoder, PART)).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert answer.json()["usage"]["cached_tiles"] == TILES  # on disk
    assert encoder.client.get("/health").status_code == 200


def test_keys(encoder: Served) -> None:
    with httpx.Client(base_url=encoder.url, trust_env=False) as stranger:
        assert stranger.post("/v1/encode", json={"input": [PART]}).status_code == 401
        assert stranger.get("/health").status_code == 200


def test_a_killed_server_leaves_its_tiles(encoder: Served, folder: Path) -> None:
    """The one of the tests before, which nobody asks any more."""
    encoded(encoder, PART)
    deadline = time.monotonic() + 30
    while len(list(folder.rglob("*.safetensors"))) < TILES and time.monotonic() < deadline:
        time.sleep(0.05)  # a thread writes them, behind the answer
    os.kill(encoder.process.pid, signal.SIGKILL)
    encoder.process.wait(30)
    with pytest.raises(httpx.TransportError):
        encoded(encoder, PART)
    flags = ("--encoder-cache-dir", str(folder), "--dtype", "float32")
    with served(*flags, verb="encode-server") as after:
        assert encoded(after, PART).json()["usage"]["cached_tiles"] == TILES
        assert after.metric("tilewise:tiles_encoded_total") == 0
        assert after.stop() == 0
