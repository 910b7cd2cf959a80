"""Log lines, character by character, since scripts look for them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tilewise.console import http_log_config, set_up_logs
from tilewise.errors import InvalidConfig

PROGRAM = """
import json, logging, logging.config, sys
from tilewise.console import http_log_config, set_up_logs
set_up_logs("APIServer", sys.argv[1])
logging.config.dictConfig(http_log_config("APIServer", "info", json.loads(sys.argv[2]), ["/health"]))
logging.getLogger("tilewise").debug("quiet")
logging.getLogger("tilewise").info("Loading weights took %.2f seconds", 1.46)
logging.getLogger("tilewise").info("one\\nINFO 12-05 08:42:13 [forged.py:1] two")
logging.getLogger("other").info("not ours")
logging.getLogger("uvicorn.error").info("Started server process [%d]", 2736)
for path in ("/v1/chat/completions", "/health?x=1"):
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:60988", "POST", path, "1.1", 200)
try:
    raise ValueError("why")
except ValueError:
    logging.getLogger("tilewise").exception("It failed")
"""


def lines(level: str, access: bool) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, level, json.dumps(access)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [re.sub(r"pid=\d+", "pid=N", line) for line in (done.stderr + done.stdout).splitlines()]


def test_the_form_is_vllms():
    found = lines("info", access=True)
    ours = r"\(APIServer pid=N\) (INFO|ERROR) \d\d-\d\d \d\d:\d\d:\d\d \[<string>:\d+\] "
    assert re.fullmatch(ours + r"Loading weights took 1\.46 seconds", found[0])
    assert re.fullmatch(ours + "one", found[1])
    assert re.fullmatch(ours + r"INFO 12-05 08:42:13 \[forged\.py:1\] two", found[2])
    assert found[3] == "(APIServer pid=N) INFO:     Started server process [2736]"
    assert re.fullmatch(ours + "It failed", found[4])
    assert re.fullmatch(ours + "ValueError: why", found[-2])
    assert found[-1] == '(APIServer pid=N) INFO:     127.0.0.1:60988 - "POST /v1/chat/completions HTTP/1.1" 200 OK'


def test_levels_and_no_access_lines():
    assert "quiet" in lines("DEBUG", access=False)[0]
    assert not any("POST" in line for line in lines("INFO", access=False))


def test_an_unknown_level_is_refused():
    with pytest.raises(InvalidConfig, match="Did you mean WARNING"):
        set_up_logs("APIServer", "WARNNG")
    assert http_log_config("APIServer", "trace", True)["loggers"]["uvicorn"]["level"] == 5
