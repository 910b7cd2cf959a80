"""Where ranks of several machines meet: at the address that is named, and at no other of the machine's."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.processes import listening
from tests.served import ROOT
from tilewise.errors import InvalidConfig
from tilewise.layout import Layout
from tilewise.parallel.ranks import join

FIRST = """
import sys
from tilewise.layout import Layout
from tilewise.parallel.ranks import join, leave
join(0, Layout(), sys.argv[1])
print("here", flush=True)
sys.stdin.read()
leave()
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_first_rank_listens_at_its_address_alone(host: str) -> None:
    """CVE-2025-47277: a store of addresses that anybody reaches, who then has ranks unpickle what he sends."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as free:
        port = free.getsockname()[1]
    address = f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
    command = [sys.executable, "-c", FIRST, address]
    variables = {"PYTHONPATH": str(ROOT / "src"), "GLOO_SOCKET_IFNAME": "lo"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as rank:
        assert rank.stdin is not None
        assert rank.stdout is not None
        assert rank.stdout.readline() == "here\n"
        found = listening([rank.pid])
        rank.stdin.close()
    assert rank.returncode == 0
    assert (host, port) in found
    assert {where for where, _ in found} <= {"127.0.0.1", "::1"}


def test_a_place_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidConfig, match=rf"cannot meet at 127\.0\.0\.1:{port} \(Address already in use\)"):
            join(0, Layout(), f"tcp://127.0.0.1:{port}")
