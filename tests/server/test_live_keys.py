"""A server with keys: who brings none, or another, gets nothing."""

from __future__ import annotations

import httpx
import pytest

from tests.served import Served, served
from tests.server.live import KEYS, ROOT

OPEN = ("/health", "/ping", "/version", "/metrics")
RIGHT = {"Authorization": f"Bearer {KEYS[0]}"}

LOCKED = [
    *(
        ("POST", path)
        for path in (
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/messages",
            "/tokenize",
            "/detokenize",
        )
    ),
    *(("GET", path) for path in ("/v1/models", "/load", "/docs", "/redoc", "/openapi.json")),
    *(("GET", path) for path in ("/docs/swagger-ui.css", "/nothing", "/health/", "/ping/..", "//health", "/HEALTH")),
    *(
        ("GET", f"{ROOT}{path}")
        for path in ("/v1/models", "/load", "/docs", "/nothing", "/health/", f"{ROOT}/health", "")
    ),
    *(("GET", path) for path in (f"{ROOT}v1/models", f"{ROOT}health", f"/health{ROOT}", "/metrics/", "/version/x")),
    *(("POST", path) for path in ("/v2/rerank", "/inference/v1/generate", "/invocations", f"{ROOT}/tokenize")),
]
WRONG = {
    "none": {},
    "another": {"Authorization": "Bearer third-key"},
    "the beginning of one": {"Authorization": f"Bearer {KEYS[0][:-1]}"},
    "one and more": {"Authorization": f"Bearer {KEYS[0]}x"},
    "both": {"Authorization": f"Bearer {KEYS[0]} {KEYS[1]}"},
    "another scheme": {"Authorization": f"Basic {KEYS[0]}"},
    "no scheme": {"Authorization": KEYS[0]},
    "an empty one": {"Authorization": "Bearer"},
    "another header": {"X-Token": KEYS[0]},
    "a part of one, as Anthropic's clients send it": {"X-API-Key": KEYS[0][:-1]},
    "one beside one that is none": {"X-API-Key": KEYS[0], "Authorization": "Bearer x"},
}


@pytest.mark.parametrize(("method", "path"), LOCKED)
def test_every_other_path_asks_for_a_key(locked: Served, method: str, path: str):
    answer = locked.client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 401
    if path.startswith("/v1/messages"):
        assert answer.json()["error"]["type"] == "authentication_error"
    else:
        assert answer.json() == {"error": "Unauthorized"}
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("root", ["", ROOT])
def test_health_version_and_metrics_do_not(locked: Served, path: str, root: str):
    assert locked.client.get(root + path).status_code == 200


def test_metrics_and_version_do_where_it_is_said():
    with served("--max-model-len", "512", "--api-key", "a-key", "--metrics-with-key") as server:
        assert [server.client.get(path).status_code for path in OPEN] == [200, 200, 401, 401]
        key = {"Authorization": "Bearer a-key"}
        assert [server.client.get(path, headers=key).status_code for path in OPEN] == [200] * 4


@pytest.mark.parametrize("path", ["/v1/models", "/openapi.json", "/docs", "/docs/swagger-ui.css"])
@pytest.mark.parametrize("root", ["", ROOT])
def test_a_proxy_may_take_the_root_path_off_or_not(locked: Served, path: str, root: str):
    assert locked.client.get(root + path, headers=RIGHT).status_code == 200
    assert locked.logs(f'"GET {root}{path} HTTP/1.1" 200'), "paths are logged as they were asked for"


def test_the_root_path_counts_once(locked: Served):
    assert locked.client.get(f"{ROOT}{ROOT}/v1/models", headers=RIGHT).status_code == 404


def test_pages_ask_below_the_root_path(locked: Served):
    assert locked.client.get("/openapi.json", headers=RIGHT).json()["servers"] == [{"url": ROOT}]
    for root in ("", ROOT):
        page = locked.client.get(f"{root}/docs", headers=RIGHT).text
        assert "url: 'openapi.json'" in page, "beside it, wherever it is"
        assert 'src="docs/swagger-ui-bundle.js"' in page


@pytest.mark.parametrize("root", ["", ROOT])
def test_a_slash_too_many_leads_below_the_root_path(locked: Served, root: str):
    answer = locked.client.get(f"{root}/load/", headers=RIGHT)
    assert (answer.status_code, httpx.URL(answer.headers["location"]).path) == (307, f"{ROOT}/load")


@pytest.mark.parametrize("name", WRONG)
def test_a_key_that_is_none_of_them(locked: Served, name: str):
    assert locked.client.get("/v1/models", headers=WRONG[name]).status_code == 401


def test_bytes_that_no_key_has(locked: Served):
    assert locked.client.get("/v1/models", headers={b"Authorization": b"Bearer \xff\xfe"}).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(locked: Served, scheme: str, key: str):
    assert locked.client.get("/v1/models", headers={"Authorization": f"{scheme} {key}"}).status_code == 200


def test_a_browser_may_ask_before_it_has_a_key(locked: Served):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert locked.client.options("/v1/models", headers=asked).status_code == 200


def test_an_upload_without_a_key_is_not_read(locked: Served):
    answer = locked.client.post("/v1/chat/completions", content=b" " * 2**22)
    assert answer.status_code == 401


def test_the_document_asks_for_keys(locked: Served):
    found = locked.client.get("/openapi.json", headers={"Authorization": f"Bearer {KEYS[0]}"}).json()
    assert found["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in found["paths"].items():
        for operation in methods.values():
            opened = path in OPEN
            assert ("security" not in operation) is opened
            assert ("401" not in operation["responses"]) is opened
