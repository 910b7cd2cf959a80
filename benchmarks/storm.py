"""A storm of pictures, all asked about at once, and what others who ask the same server feel of it.

    python -m benchmarks.storm [--kinds png jpeg webp video] [--count 300] [--rounds 3] [--model demo] [serve's flags]
    python -m benchmarks.storm --without-model [...]
    python -m benchmarks.storm --server http://127.0.0.1:8000 --process 4711 [...]

Each request of a storm brings a page of text of its own, 1275 x 1650 pixels, in base64, or a video of 30 seconds; all
are sent at the same moment, over as many connections. Meanwhile somebody asks for /health every 10 ms, and somebody
else a question without a picture every 100 ms, each from a process of its own. Printed are answers a second, the times
of those two, and the most memory of all the server's processes together, medians of the rounds and the worst of each.
The client's work is on the same machine. Without a model, the engine computes nothing and answers at once, and tiles
have the 448 pixels of published models: what is left is the path of a picture to where it would be encoded.
With --server, one that runs is asked, of whatever make, whose memory is that of --process and all below it.
TILEWISE_MEDIA_WORKERS=0 opens pictures in the server's own process, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import io
import json
import multiprocessing
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from benchmarks.empty_engine import build_for_pictures
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from tests.served import ROOT, served, until

from tilewise.config import EngineConfig
from tilewise.remote.engine import EngineProcess
from tilewise.server.config import ServerConfig
from tilewise.server.serve import serve as run_server

CHECKPOINT = ROOT / "src" / "tilewise" / "demo" / "checkpoint"

SIZE = (1275, 1650)
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 90}),
    "webp": ("WEBP", {"quality": 85}),
}
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz    "))


def page(chance: np.random.Generator) -> Image.Image:
    """Return a page of random words, which no other page shares a line with."""
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(22)
    for top in range(80, SIZE[1] - 90, 30):
        draw.text((90, top), "".join(chance.choice(LETTERS, 92)), fill=(20, 20, 30), font=font)
    return image


def video(chance: np.random.Generator) -> bytes:
    """Return 30 seconds of film, 640 x 360 at 24 frames a second."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height = 640, 360
        still = chance.integers(0, 256, (360, 640, 3), np.uint8)
        still[:180] //= 8
        for number in range(30 * 24):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 2 * number, axis=1) if number % 24 == 0 else still)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def body(kind: str, chance: np.random.Generator) -> bytes:
    """Return a request about a page or a video of its own."""
    if kind == "video":
        content, name, part = video(chance), "video/mp4", "video_url"
    else:
        written = io.BytesIO()
        page(chance).save(written, FORMATS[kind][0], **FORMATS[kind][1])
        content, name, part = written.getvalue(), f"image/{kind}", "image_url"
    url = f"data:{name};base64,{base64.b64encode(content).decode()}"
    parts = [{"type": part, part: {"url": url}}, {"type": "text", "text": "What is the word?"}]
    return encoded({"messages": [{"role": "user", "content": parts}], "max_tokens": 4, "temperature": 0})


def encoded(asked: dict[str, Any]) -> bytes:
    return json.dumps(asked).encode()


async def post(host: str, port: int, asked: bytes) -> None:
    """Send a request, and read its answer to the end."""
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(asked)}\r\nConnection: close\r\n\r\n".encode() + asked)
    answer = await reader.read()
    writer.close()
    if b" 200 " not in answer[:20]:
        raise ValueError(answer[:2000].decode(errors="replace"))


def storm(host: str, port: int, bodies: list[bytes]) -> float:
    """Return the seconds in which all are answered."""

    async def all_at_once() -> None:
        await asyncio.gather(*(post(host, port, asked) for asked in bodies))

    began = time.perf_counter()
    asyncio.run(all_at_once())
    return time.perf_counter() - began


def probe(host: str, port: int, pause: float, asked: bytes | None, ends: Event, times: Any) -> None:
    """Ask for /health, or post `asked`, again and again until told to end, and report the milliseconds of each."""
    found = []
    while not ends.is_set():
        client = http.client.HTTPConnection(host, port, timeout=120)
        began = time.perf_counter()
        if asked is None:
            client.request("GET", "/health")
        else:
            client.request("POST", "/v1/chat/completions", asked, {"Content-Type": "application/json"})
        answer = client.getresponse()
        answer.read()
        assert answer.status == 200
        found.append(1000 * (time.perf_counter() - began))
        client.close()
        time.sleep(pause)
    times.put(found)


class Prober:
    """A process that asks on and on, until its times are wanted."""

    def __init__(self, host: str, port: int, pause: float, asked: bytes | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends, self._times = context.Event(), context.Queue()
        arguments = (host, port, pause, asked, self._ends, self._times)
        self._process = context.Process(target=probe, args=arguments, daemon=True)
        self._process.start()

    def times(self) -> list[float]:
        self._ends.set()
        found: list[float] = self._times.get(timeout=120)
        self._process.join()
        return found


def serve_without_model(folder: str, port: int) -> None:
    """Serve the demo's small files, but for tiles of 448 pixels, with an engine that computes nothing."""
    config = json.loads((CHECKPOINT / "config.json").read_text())
    config["force_image_size"] = config["vision_config"]["image_size"] = 448
    for file in CHECKPOINT.iterdir():
        (Path(folder) / file.name).symlink_to(file)
    (Path(folder) / "config.json").unlink()
    (Path(folder) / "config.json").write_text(json.dumps(config))
    # Of the 32 frames of a video, which are one tile each, so many fit.
    engine = EngineConfig(model=folder, disable_log_stats=True, max_model_len=8192, num_frames=24)
    server = ServerConfig(host="127.0.0.1", port=port, disable_uvicorn_access_log=True)
    asyncio.run(run_server(engine, server, EngineProcess(), build_for_pictures))


@contextmanager
def served_without_model() -> Iterator[tuple[str, int]]:
    """Yield the address and the process id of a server without a model."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=serve_without_model, args=(folder, port))
        process.start()
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(url))
        yield url, process.pid or 0
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def served_with_model(model: str, flags: list[str]) -> Iterator[tuple[str, int]]:
    # Tests give a server one thread, which is not what users have.
    with served(model, *flags, environment={"OMP_NUM_THREADS": str(os.cpu_count())}) as server:
        yield server.url, server.process.pid


def memory_of(server: int) -> float:
    """Return the GiB of a server's process and all below it; what they share is counted once."""
    kilobytes = 0
    for process in family_of(server) if server else ():
        with suppress(OSError):  # it has just ended
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 2**20


def family_of(process: int) -> list[int]:
    """Return a process and all that it has started, and these."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(one for child in children for one in family_of(int(child)))]


@dataclass(frozen=True, slots=True)
class Weather:
    """The measurements of one storm."""

    answers_a_second: float
    health: list[float]
    text: list[float]
    gigabytes: float


def measure(url: str, server: int, bodies: list[bytes]) -> Weather:
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    asked = encoded({"messages": [{"role": "user", "content": "What is this?"}], "max_tokens": 4, "temperature": 0})
    probers = [Prober(host, port, 0.01, None), Prober(host, port, 0.1, asked)]
    time.sleep(3)  # they have begun
    context, peak = multiprocessing.get_context("spawn"), 0.0
    with context.Pool(1) as client:
        waits = client.apply_async(storm, (host, port, bodies))
        while not waits.ready():
            peak = max(peak, memory_of(server))
            waits.wait(1.0)
        seconds = waits.get()
    health, text = (prober.times() for prober in probers)
    return Weather(len(bodies) / seconds, health, text, peak)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def told(kind: str, found: list[Weather]) -> list[str]:
    def spread(values: Callable[[Weather], float], digits: int = 0) -> str:
        each = [values(one) for one in found]
        return f"{statistics.median(each):.{digits}f} ({min(each):.{digits}f} to {max(each):.{digits}f})"

    return [
        kind,
        spread(lambda one: one.answers_a_second, 1),
        spread(lambda one: percentile(one.health, 0.5), 1),
        spread(lambda one: percentile(one.health, 0.99)),
        spread(lambda one: max(one.health)),
        spread(lambda one: percentile(one.text, 0.5)),
        spread(lambda one: max(one.text)),
        spread(lambda one: one.gigabytes, 2),
    ]


def server_of(args: argparse.Namespace, flags: list[str]) -> AbstractContextManager[tuple[str, int]]:
    """Return a context with the URL and the process of the server that is asked."""
    if args.server:
        return nullcontext((args.server, args.process))
    return served_without_model() if args.without_model else served_with_model(args.model, flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=[*FORMATS, "video"], default=["png"])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--without-model", action="store_true", help="the engine computes nothing")
    parser.add_argument("--server", help="URL of one that runs, instead of one of ours that is started")
    parser.add_argument("--process", type=int, default=0, help="its process")
    args, flags = parser.parse_known_args()
    chance = np.random.default_rng()
    for kind in args.kinds:
        count = args.count if kind != "video" else args.count // 10
        with server_of(args, flags) as (url, server):
            found = [measure(url, server, [body(kind, chance) for _ in range(count)]) for _ in range(args.rounds)]
        table = Table("pictures", "answers/s", "health p50", "p99", "worst, ms", "text p50", "worst, ms", "memory, GiB")
        table.add_row(*told(f"{count} {kind}", found))
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
