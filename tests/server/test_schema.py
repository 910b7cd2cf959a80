"""Thousands of generated requests, right and wrong, against the OpenAPI document and a real server.

Needs Schemathesis (`make test-schema`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import Served, served

CASES = 5000
KEY = "a-key"
SERVER = ("--max-model-len", "512", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
# A request that fits the document may still ask for a context that is too small, or for a picture that is none; and
# numbers and switches are also read from texts and from one another, as clients in many languages write them.
NOT_PROMISED = "positive_data_acceptance,negative_data_rejection"


def campaign(server: Served, folder: Path, flags: Sequence[str] = ()) -> tuple[int, str]:
    """How many cases were tried, and what is told of them; all kinds of checks but two. Notes stay in `folder`."""
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
    options = [
        *("--exclude-checks", NOT_PROMISED, "--phases", "examples,coverage,fuzzing", "--max-examples", "40"),
        # One worker: up to 3.11.7, Python's parser, which hypothesis calls, counts its depth for all threads together.
        *("--seed", "1", "--workers", "1", "--request-timeout", "60", "--suppress-health-check", "all"),
        *("--continue-on-failure", "--no-color"),
    ]
    asked = [*command, f"{server.url}/openapi.json", *options, *flags]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=3000, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found, done.stdout
    assert found[1] == found[2], done.stdout
    return int(found[1]), done.stdout


def healthy(server: Served, **headers: str) -> None:
    body = {"messages": [{"role": "user", "content": "What is this?"}], "max_tokens": 2}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert json.loads(answer.text)["usage"]["completion_tokens"] >= 1
    assert not [line for line in server.lines if "Traceback" in line]


@pytest.mark.schema
def test_thousands_of_requests(tmp_path: Path, capsys: Any):
    """Without keys, and with them, which adds what unauthorized requests get."""
    pytest.importorskip("schemathesis")
    authorization = f"Bearer {KEY}"
    with served(*SERVER, "--disable-uvicorn-access-log") as server:
        first, told = campaign(server, tmp_path)
        healthy(server)
        assert server.metric("tilewise:engine_restarts_total") == 0
    with served(*SERVER, "--disable-uvicorn-access-log", "--api-key", KEY) as server:
        second, told_too = campaign(server, tmp_path, ("--header", f"Authorization: {authorization}"))
        healthy(server, Authorization=authorization)
    with capsys.disabled():
        print(told, told_too)
    assert first + second >= CASES
