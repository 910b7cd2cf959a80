"""HTTPS with real certificates: verified by the client, of clients by the server, and files that do not go together."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import Served, served
from tests.server.certificates import Authority, Pair, openssl
from tilewise.errors import InvalidConfig
from tilewise.server.config import ServerConfig

BODY = {"messages": [{"role": "user", "content": "What is this?"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.made(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.pair("server")


def flags(pair: Pair, *more: str) -> tuple[str, ...]:
    return ("--ssl-keyfile", pair.key, "--ssl-certfile", pair.certificate, *more)


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[Served]:
    with served(*flags(pair)) as server:
        yield server


def client(server: Served, trusted: str | None, own: Pair | None = None) -> httpx.Client:
    context = ssl.create_default_context(cafile=trusted)
    if own:
        context.load_cert_chain(own.certificate, own.key)
    return httpx.Client(base_url=server.url, verify=context, timeout=60, trust_env=False)


def test_whoever_trusts_the_authority_is_answered(server: Served, authority: Authority):
    assert server.url.startswith("https://")
    with client(server, authority.certificate) as asking:
        answer = asking.post("/v1/chat/completions", json=BODY)
        assert answer.json()["usage"]["completion_tokens"] >= 1
        streamed = asking.post("/v1/chat/completions", json={**BODY, "stream": True}).text.split()
        assert streamed[-1] == "[DONE]"
        assert json.loads(asking.get("/openapi.json").text)["openapi"]


def test_whoever_does_not_is_not(server: Served, tmp_path: Path):
    for stranger in (None, Authority.made(tmp_path).certificate):
        with client(server, stranger) as asking, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            asking.get("/health")


def test_nothing_is_said_in_clear(server: Served, authority: Authority):
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{server.url.replace('https', 'http')}/health", timeout=60, trust_env=False)
    with client(server, authority.certificate) as asking:
        assert asking.get("/health").status_code == 200


def test_a_server_can_ask_clients_for_theirs(authority: Authority, pair: Pair, tmp_path: Path):
    known, unknown = authority.pair("client"), Authority.made(tmp_path).pair("stranger")
    with served(*flags(pair, "--ssl-ca-certs", authority.certificate, "--ssl-cert-reqs", "2")) as server:
        for own in (None, unknown):
            with client(server, authority.certificate, own) as asking, pytest.raises(httpx.TransportError):
                asking.get("/health")
        with client(server, authority.certificate, known) as asking:
            assert asking.post("/v1/chat/completions", json=BODY).status_code == 200


def test_a_wrong_pair_costs_no_loading_time(authority: Authority, pair: Pair):
    other = replace(pair, key=authority.pair("other").key)
    server = Served(*flags(other))
    assert server.process.wait(60) == 1
    server.stop()
    assert f"ssl_keyfile: {other.key} is not the key of the first certificate in {pair.certificate}" in server.log
    assert "Loading weights" not in server.log


def options(pair: Pair, **more: Any) -> dict[str, Any]:
    return {"ssl_keyfile": pair.key, "ssl_certfile": pair.certificate, **more}


def test_files_that_can_be(authority: Authority, pair: Pair):
    assert ServerConfig(**options(pair)).url == "https://127.0.0.1:8000"
    ServerConfig(**options(pair, ssl_cert_reqs=2, ssl_ca_certs=authority.certificate, ssl_ciphers="ECDHE+AESGCM"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"ssl_keyfile": "no-such.pem"}, "ssl_keyfile: there is no file no-such.pem: name one that is there"),
        ({"ssl_keyfile": __file__}, f"ssl_keyfile: {__file__} holds no private key in PEM form: name the file"),
        ({"ssl_certfile": __file__}, f"ssl_certfile: {__file__} holds no certificate in PEM form: name the file"),
        ({"ssl_ca_certs": __file__}, f"ssl_ca_certs: {__file__} holds no certificate in PEM form"),
        ({"ssl_ciphers": "ENIGMA"}, "ssl_ciphers='ENIGMA' names no cipher of this OpenSSL"),
        ({"ssl_cert_reqs": 2}, "ssl_cert_reqs=2 needs ssl_ca_certs"),
    ],
)
def test_what_cannot_be(pair: Pair, more: dict[str, Any], says: str):
    with pytest.raises(InvalidConfig) as caught:
        ServerConfig(**options(pair, **more))
    assert says in str(caught.value)


def test_a_key_of_another_kind_and_one_with_a_passphrase(pair: Pair, tmp_path: Path):
    rsa, locked = tmp_path / "rsa.key", tmp_path / "locked.key"
    openssl("genrsa", "-out", str(rsa), "2048")
    openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", str(locked))
    with pytest.raises(InvalidConfig, match=r"rsa\.key is not the key of the first certificate"):
        ServerConfig(**options(pair, ssl_keyfile=str(rsa)))
    with pytest.raises(InvalidConfig, match=r"locked\.key is encrypted.*write it without"):
        ServerConfig(**options(pair, ssl_keyfile=str(locked)))
