"""A server with keys: who brings none, or another, gets nothing."""

from __future__ import annotations

import pytest

from tests.served import Served
from tests.server.live import KEYS

LOCKED = [
    *(
        ("POST", path)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize")
    ),
    *(("GET", path) for path in ("/v1/models", "/version", "/metrics", "/load", "/docs", "/redoc", "/openapi.json")),
    *(("GET", path) for path in ("/docs/swagger-ui.css", "/nothing", "/health/", "/ping/..", "//health", "/HEALTH")),
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
    "another header": {"X-API-Key": KEYS[0]},
}


@pytest.mark.parametrize(("method", "path"), LOCKED)
def test_every_other_path_asks_for_a_key(locked: Served, method: str, path: str):
    answer = locked.client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 401
    assert answer.json() == {"error": "Unauthorized"}
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health_does_not(locked: Served, path: str):
    assert locked.client.get(path).status_code == 200


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
            opened = path in ("/health", "/ping")
            assert ("security" not in operation) is opened
            assert ("401" not in operation["responses"]) is opened
