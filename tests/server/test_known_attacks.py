"""Attacks that have worked on other servers, against this one over real HTTP. One test an attack."""

from __future__ import annotations

import base64
import io
import socket
from urllib.parse import urlsplit

import pytest
from PIL import Image
from starlette.datastructures import Headers

from tests.processes import children, listening
from tests.served import Served
from tests.server.live import KEYS, MAX_BODY, ROOT, about_picture, about_video, ask_about, chat, error_of
from tilewise.server.middleware import RequestGuard

DEEP = 100_000


def picture_url(width: int, height: int) -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"),
        *("2130706433", "0x7f000001", "0177.0.0.1"),
    ],
)
def test_addresses_of_this_machine(live: Served, host: str):
    """CVE-2025-6242, CVE-2026-33626: the server fetches what only it can reach. Nothing connects here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        error = error_of(about_picture(live, f"http://{host}:{port}/a.png"))
        assert "which is not a public address: refused" in error["message"]
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "192.168.0.1", "100.64.0.1", "[fd00::1]", "[fe80::1]"])
def test_addresses_of_networks_behind(live: Served, host: str):
    """CVE-2025-6242: metadata services and neighbours."""
    assert "not a public address" in error_of(about_picture(live, f"http://{host}/latest/meta-data"))["message"]


@pytest.mark.parametrize("url", ["http://example.com\\@127.0.0.1/a.png", "http://example.com@127.0.0.1/a.png"])
def test_two_readings_of_one_url(live: Served, url: str):
    """CVE-2026-24779: the host that is checked is not the one that is asked."""
    error_of(about_picture(live, url))


def test_addresses_of_memory_in_errors(live: Served):
    """CVE-2026-22778: a decoder's text says where in memory an object is (`error_of` looks for it in all tests)."""
    for data in (b"\x00", b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"GIF89a", b"<svg/>", b"%PDF-1.4"):
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        assert "object at" not in error_of(about_picture(live, url))["message"]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2000, 10), (3, 2)])
def test_pictures_of_odd_sizes(live: Served, size: tuple[int, int]):
    """CVE-2026-22773: a picture of one pixel ends the engine. Here it is answered about like any other."""
    answer = about_picture(live, picture_url(*size))
    assert answer.status_code == 200, answer.text


def test_more_frames_than_anybody_needs(live: Served):
    """CVE-2026-5497, CVE-2026-34755: frames without end in one URL."""
    error_of(about_video(live, "data:video/jpeg;base64," + ",".join(["AAAA"] * 10_000)))


@pytest.mark.parametrize(
    "text", ["<IMG_CONTEXT>", "<img>", "</img>", "<image>", "<video>", "<|im_end|>", "<|im_start|>system"]
)
def test_placeholders_in_texts(live: Served, text: str):
    """CVE-2026-44222: a user's text with a placeholder of pictures ends the engine. Here it is text."""
    plain = chat(live, messages=[{"role": "user", "content": text * 20}])
    assert plain.status_code == 200, plain.text
    beside = [{"type": "image_url", "image_url": {"url": picture_url(64, 64)}}, {"type": "text", "text": text}]
    answer = chat(live, messages=[{"role": "user", "content": beside}])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "name", ["chat_template", "tokenize", "tools", "documents", "add_generation_prompt", "return_tensors", "__class__"]
)
def test_options_of_the_template_that_are_not_the_callers(live: Served, name: str):
    """CVE-2025-62426: `chat_template_kwargs` takes the place of the template, or of tokenizing."""
    error = error_of(chat(live, chat_template_kwargs={name: "{% for i in range(10**9) %}{% endfor %}"}))
    assert error["param"] == "chat_template_kwargs"


def test_a_template_of_the_caller(live: Served):
    """CVE-2025-61620: a template that never ends."""
    template = "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}"
    assert error_of(chat(live, chat_template=template))["param"] == "chat_template"
    body = {"messages": [{"role": "user", "content": "a"}], "chat_template": template}
    error_of(live.client.post("/tokenize", json=body))


def test_keys_are_compared_by_digests_and_all_of_them(locked: Served, monkeypatch: pytest.MonkeyPatch):
    """CVE-2025-59425: how long a comparison takes tells how much of a key is right."""
    compared: list[tuple[int, int]] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((len(given), len(known)))
        return given == known

    monkeypatch.setattr("tilewise.server.middleware.hmac.compare_digest", compare)
    door = RequestGuard(app=locked, keys=KEYS)  # type: ignore[arg-type]
    for key in (KEYS[0], KEYS[0][:3], "", "x" * 10_000):
        scope = {"method": "GET", "path": "/v1/models", "headers": [(b"authorization", f"Bearer {key}".encode())]}
        refused = door._refusal(scope, Headers(scope=scope))
        assert (refused is None) is (key in KEYS)
    assert compared == [(32, 32)] * (4 * len(KEYS))
    assert locked.client.get("/v1/models", headers={"Authorization": f"Bearer {KEYS[0]}x"}).status_code == 401


def test_headers_without_end(live: Served):
    """CVE-2025-48956: a header fills the memory."""
    error_of(live.client.get("/health", headers={"x": "a" * 2**20}), 431)


SCHEMAS = {
    "a type that is none": {"type": "something"},
    "a number for a type": {"type": 5},
    "a pattern that is none": {"properties": {"a": {"type": "string", "pattern": "(["}}},
    "a pattern that explodes": {"properties": {"a": {"type": "string", "pattern": "(a+)+" * 200}}},
    "a reference to nothing": {"$ref": "#/nowhere"},
    "properties that are none": {"type": "object", "properties": []},
    "a part whose properties are none": {"allOf": [{"properties": "a"}, {"properties": {"b": False}}]},
    "patterns that are none": {"properties": {"a": {}}, "patternProperties": 5},
    "parts that are none": {
        "properties": {"a": {}},
        "allOf": 5,
        "$ref": "#/$defs/b",
        "$defs": {"b": {"required": ["b"]}},
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_of_tools_that_are_none(live: Served, name: str):
    """CVE-2025-48944: a function's schema, or a pattern in it, ends the engine."""
    function = {"name": "f", "parameters": SCHEMAS[name]}
    choice = {"type": "function", "function": {"name": "f"}}
    error_of(chat(live, tools=[{"type": "function", "function": function}], tool_choice=choice))


def test_forms_that_are_none(live: Served):
    """CVE-2025-48944: the same by other fields."""
    for form in ({"regex": "(["}, {"json": {"type": 5}}, {"grammar": "start: ["}, {"choice": []}):
        error_of(chat(live, structured_outputs=form))


def test_embeddings_in_place_of_pictures_and_prompts(live: Served):
    """CVE-2025-62164, CVE-2025-62372: a hostile tensor ends the engine, or runs code."""
    pickled = base64.b64encode(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os").decode()
    error_of(ask_about(live, type="image_embeds", image_embeds=pickled))
    error = error_of(live.client.post("/v1/completions", json={"prompt": "a", "prompt_embeds": pickled}))
    assert error["param"] == "prompt_embeds"


def test_salted_prefixes_are_nobody_elses(live: Served):
    """CVE-2025-46570: how fast a prompt is answered tells whether somebody has sent it before."""
    messages = [{"role": "user", "content": "A secret that somebody else has sent before. " * 8}]

    def cached(**fields: str) -> int:
        usage = chat(live, messages=messages, **fields).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached(cache_salt="mine") == 0
    assert cached(cache_salt="mine") > 0
    assert cached(cache_salt="another") == 0
    assert cached() == 0


def test_only_the_port_of_http_is_listened_at(live: Served):
    """CVE-2026-3059, CVE-2026-3060, CVE-2026-3989, CVE-2026-7301: an internal socket that anybody reaches."""
    pids = [live.process.pid, *children(live.process.pid)]
    assert live.engine_pid in pids
    assert listening(pids) == {("127.0.0.1", int(live.url.rpartition(":")[2]))}


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_nesting_without_end(live: Served, opening: bytes):
    """CVE-2025-23310: a stack overflows over what HTTP brings in."""
    body = b'{"messages":' + opening * DEEP
    headers = {"Content-Type": "application/json"}
    assert (
        "nests more than 64"
        in error_of(live.client.post("/v1/chat/completions", content=body, headers=headers))["message"]
    )


def test_a_download_that_says_nothing_of_its_size(live: Served):
    """CVE-2026-0599: pictures named in a text are not fetched at all, whatever marks them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        answer = chat(live, messages=[{"role": "user", "content": f"![]({url}) <img src='{url}'>"}])
        assert answer.status_code == 200
        with pytest.raises(TimeoutError):
            listener.accept()


HOSTS = [b"a/health?x=", b"a/metrics#", b"a/version?", b"127.0.0.1:1/ping?", b"a\\health"]


@pytest.mark.parametrize("path", ["/v1/models", "/server_info", f"{ROOT}/v1/models"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_looks_like_an_open_path(locked: Served, host: bytes, path: str):
    """CVE-2026-48746, CVE-2026-48710: the path that is judged is made of the header Host."""
    answer = raw_answer(locked, b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (path.encode(), host))
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400")), answer[:200]
    assert b'"data"' not in answer


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
FRAMES = {
    "a length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks of another coding": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a header that is folded": b"Content-Length: 0\r\nX:\r\n Transfer-Encoding: chunked\r\n\r\n" + SMUGGLED,
    "a blank before the colon": b"Content-Length : 0\r\n\r\n" + SMUGGLED,
    "a sign before the length": b"Content-Length: +0\r\n\r\n" + SMUGGLED,
    "no end of a chunk": b"Transfer-Encoding: chunked\r\n\r\n2\r\nxxyy0\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_request_inside_of_another(live: Served, name: str):
    """CVE-2025-43859 and its kind: a proxy and the server disagree on where a request ends. None is answered twice, but
    for the folded header, which ends where everybody sees it end.
    """
    answer = raw_answer(live, b"POST /nothing HTTP/1.1\r\nHost: a\r\n" + FRAMES[name])
    assert b"HTTP/1.1 200" not in answer or name == "a header that is folded", answer
    assert answer.count(b"HTTP/1.1") == (2 if name == "a header that is folded" else 1)


def raw_answer(live: Served, data: bytes) -> bytes:
    """Return all that the server says to these bytes, behind which the client sends nothing more."""
    address = urlsplit(live.url)
    with socket.create_connection((address.hostname, address.port), 30) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("headers", [{"X-Request-Id": "a\r\nSet-Cookie: b"}, {"X-Request-Id": "a\nb"}])
def test_a_header_that_brings_another(live: Served, headers: dict[str, str]):
    """Headers that come back bring no line of the client's; h11 refuses those that could."""
    name, value = next(iter(headers.items()))
    request = f"GET /health HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\nConnection: close\r\n\r\n".encode()
    assert b"\r\nset-cookie" not in raw_answer(live, request).lower()


NUMBERS = ("n", "max_tokens", "min_tokens", "top_k", "top_logprobs", "prompt_logprobs", "seed", "max_dynamic_patch")


@pytest.mark.parametrize("value", [10**9, -(10**9), 10**30])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_too_large(live: Served, name: str, value: int):
    """CVE-2026-34756: an `n` of a billion; CVE-2026-21869: a count below zero."""
    answer = chat(live, **{"logprobs": name == "top_logprobs" or None, name: value})
    harmless = (name == "top_k" and value == 10**9) or (name == "seed" and abs(value) == 10**9)
    assert answer.status_code == (200 if harmless else 400), answer.text


def test_a_count_of_another_server_below_zero(live: Served):
    """CVE-2026-21869: `n_discard` below zero writes beyond a buffer. Nothing here has that name."""
    answer = chat(live, n_discard=-5)
    assert answer.status_code == 200
    assert "n_discard" in answer.headers["x-tilewise-ignored"]


MANY = 2 * 10**4
CROWDS = {
    "messages": {"messages": [{"role": "user", "content": "a"}] * MANY},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * MANY}]},
    "a text": {"messages": [{"role": "user", "content": "a b " * (MAX_BODY // 8)}]},
    "markers": {"messages": [{"role": "user", "content": "<image>" * (MAX_BODY // 16)}]},
    "control tokens": {"messages": [{"role": "user", "content": "<|im_end|>" * (MAX_BODY // 16)}]},
    "wrong items": {"stop": [1.5] * (MAX_BODY // 8)},
    "wrong items in lists": {"messages": [{"role": "user", "content": [1.5] * (MAX_BODY // 8)}]},
    "wrong messages": {"messages": [1.5] * (MAX_BODY // 8)},
    "wrong biases": {"logit_bias": {str(number): "a" for number in range(MANY)}},
    "stop": {"stop": ["a"] * MANY},
    "bad_words": {"bad_words": ["ab " * MANY]},
    "logit_bias": {"logit_bias": {str(number): 1 for number in range(MANY)}},
    "choices": {"structured_outputs": {"choice": [str(number) for number in range(MANY)]}},
    "repetitions": {"structured_outputs": {"regex": "((a{1,1000}){1,1000}){1,1000}"}},
    "items": {"structured_outputs": {"json": {"type": "array", "minItems": 10**8, "items": {"type": "integer"}}}},
    "unknown names": {f"name{number}": 1 for number in range(MANY)},
}


@pytest.mark.parametrize("name", CROWDS)
def test_more_of_something_than_anybody_needs(live: Served, name: str):
    """CVE-2025-46560, CVE-2026-9540: work that grows faster than the request. It is refused by its number, or bounded
    by what is generated: `live` asks afterwards."""
    answer = chat(live, **CROWDS[name])
    if name in ("stop", "repetitions", "items"):
        assert answer.status_code == 200, answer.text
    else:
        error_of(answer)


def test_prompts_without_end(live: Served):
    error_of(live.client.post("/v1/completions", json={"prompt": ["a"] * MANY}))
