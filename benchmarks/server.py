"""What the server itself costs: an engine whose runner computes nothing, real HTTP over loopback, real processes.

    python -m benchmarks.server [--connections 64] [--tokens 256]

Throughput is that of all streams together, and by processor time of the server's process: tokens a second that one
core would carry. The first token of a single request is compared with the same engine driven in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import socket
import statistics
import time
from collections.abc import Sequence

import httpx
from benchmarks.empty_engine import LIMITS, EmptyRunner, build
from rich.console import Console
from rich.table import Table

from tilewise.config import EngineConfig
from tilewise.engine.core import EngineCore
from tilewise.remote.engine import EngineProcess
from tilewise.sampling_params import SamplingParams
from tilewise.server.config import ServerConfig
from tilewise.server.serve import serve as run_server
from tilewise.types import Request

_BODY = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "stream": True, "ignore_eos": True}


def serve(port: int) -> None:
    engine = EngineConfig(model="demo", disable_log_stats=True)
    server = ServerConfig(host="127.0.0.1", port=port, disable_uvicorn_access_log=True)
    asyncio.run(run_server(engine, server, EngineProcess(), build))


async def load(base: str, connections: int, tokens: int) -> tuple[float, int]:
    """Seconds and tokens of all streams together. Each line is only counted: parsing would be the client's time."""

    async def one(client: httpx.AsyncClient) -> int:
        count = 0
        body = {**_BODY, "max_tokens": tokens}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for part in response.aiter_bytes():
                count += part.count(b"data: {")
        return count

    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=120) as client:
        started = time.perf_counter()
        counts = await asyncio.gather(*[one(client) for _ in range(connections)])
    return time.perf_counter() - started, sum(counts)


def first_tokens(port: int, count: int) -> list[float]:
    """Seconds to the first token of one request after the other, over one connection.

    Bytes are only counted: a client of a library would add its own time.
    """
    body = json.dumps({**_BODY, "max_tokens": 2}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\n\r\n" + body
    found = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(count):
            started, answer, first = time.perf_counter(), b"", 0.0
            connection.sendall(request)
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                answer += connection.recv(2**16)
                if not first and answer.count(b"data: {") > 1:  # behind the event of the role
                    first = time.perf_counter() - started
            found.append(first)
    return found


def engine_first_tokens(count: int) -> list[float]:
    """The same engine without a server: what is left to it."""
    core = EngineCore(EmptyRunner(), LIMITS)
    found = []
    for number in range(count):
        started = time.perf_counter()
        core.submit(Request(str(number), (5, 6, 7, 8), SamplingParams(max_tokens=2)))
        while not core.step():
            pass
        found.append(time.perf_counter() - started)
        while core.has_unfinished:
            core.step()
    return found


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until_up(base: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{base}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise SystemExit("The server did not start.")


def report(rows: Sequence[tuple[str, str]], title: str) -> None:
    table = Table("what", "median")
    for row in rows:
        table.add_row(*row)
    Console().print(title)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port,))
    process.start()
    try:
        wait_until_up(base)
        asyncio.run(load(base, options.connections, 16))
        rates, costs = [], []
        for _ in range(options.rounds):
            before = cpu_seconds(process.pid or 0)
            seconds, tokens = asyncio.run(load(base, options.connections, options.tokens))
            rates.append(tokens / seconds)
            costs.append(tokens / (cpu_seconds(process.pid or 0) - before))
        served = statistics.median(first_tokens(port, 400)[100:])
        alone = statistics.median(engine_first_tokens(200)[20:])
    finally:
        process.terminate()
        process.join()
    rows = [
        (f"tokens/s, {options.connections} streams", f"{statistics.median(rates):.0f}"),
        ("tokens per second of the server's processor time", f"{statistics.median(costs):.0f}"),
        ("first token over HTTP, ms", f"{1000 * served:.2f}"),
        ("first token of the engine alone, ms", f"{1000 * alone:.3f}"),
    ]
    report(rows, f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
