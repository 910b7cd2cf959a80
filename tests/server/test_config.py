"""ServerConfig: what contradicts itself is refused with what to do."""

from __future__ import annotations

import dataclasses

import pytest

from tilewise.errors import InvalidConfig
from tilewise.server.config import ServerConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 65536}, "port must be from 0 to 65535, got 65536"),
        ({"port": True}, "port must be a whole number, got True"),
        ({"served_model_name": "a"}, "served_model_name must be a tuple of texts"),
        ({"uvicorn_log_level": "warnig"}, "Did you mean warning?"),
        ({"uds": "/tmp/s", "port": 1}, "takes the place of port"),
        ({"uds": "/tmp/s", "host": "h"}, "takes the place of host"),
        ({"uds": "/no/such/folder/s"}, "there is no folder /no/such/folder"),
        ({"ui": True, "uds": "/tmp/s"}, "ui needs a port, and no TLS"),
        ({"root_path": "x"}, "must begin with /"),
        ({"ssl_keyfile": "k"}, "ssl_certfile is missing"),
        ({"ssl_certfile": "c"}, "ssl_keyfile is missing"),
        ({"ssl_keyfile": "k", "ssl_certfile": "c"}, "ssl_keyfile: there is no file k"),
        ({"ssl_cert_reqs": 2}, "no effect without"),
        ({"api_key": ("",)}, "a key is empty"),
        ({"api_key": ("schlüssel",)}, "no header can carry"),
        ({"metrics_with_key": True}, "no effect without api_key"),
        ({"allow_credentials": True}, "name the origins"),
        ({"enable_log_outputs": True}, "needs enable_log_requests"),
        ({"max_log_len": 5}, "no effect without enable_log_requests"),
        ({"generation_config": "/no/such"}, "must be auto, vllm or a folder"),
        ({"detail_tiles": {"lo": 1}}, "detail_tiles knows auto, low, medium, high, original, got 'lo'"),
        ({"detail_tiles": {"low": 0}}, "must be a whole number from 1 on"),
        ({"disable_access_log_for_endpoints": ("health",)}, "a path begins with /"),
        ({"otlp_traces_endpoint": "localhost:4318"}, "must be an http(s) URL"),
        ({"request_timeout": float("nan")}, "request_timeout must be 0.001 or above"),
        ({"max_num_queued_reqs": 0}, "max_num_queued_reqs must be 1 or above, got 0"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(InvalidConfig) as caught:
        ServerConfig(**options)
    assert message in str(caught.value)


def test_what_can_be():
    ServerConfig(allow_credentials=True, allowed_origins=("https://chat.example",))
    ServerConfig(enable_auto_tool_choice=True, tool_call_parser="hermes", max_body_mb=1)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (None, "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("fe80::1", "http://[fe80::1]:8000"),
        ("[::]", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("10.0.0.7", "http://10.0.0.7:8000"),
    ],
)
def test_where_a_client_finds_it(host, url):
    assert ServerConfig(host=host).url == url


def test_keys_are_not_shown():
    assert "secret" not in repr(ServerConfig(api_key=("secret",)))


def test_every_option_says_what_it_is():
    assert all(field.metadata["help"] and field.metadata["group"] for field in dataclasses.fields(ServerConfig))


def test_what_a_server_shows_of_itself_has_no_key_and_no_token():
    from tilewise.config import EngineConfig
    from tilewise.server.information import _shown

    shown = str([_shown(ServerConfig(api_key=("secret",))), _shown(EngineConfig(hf_token="hf_secret"))])
    assert "secret" not in shown
    assert "max_num_seqs" in shown
