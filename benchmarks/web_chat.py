"""The web chat's first paint, and what open chats cost the server's other clients.

    python -m benchmarks.web_chat [--pages 20] [--paints 9] [--requests 60] [--rounds 3]

A server of the demo model shows the chat at /ui. First, Chromium opens the page with an empty cache, so many times;
printed is the browser's own first contentful paint. Then a client asks about a picture that the server has not seen,
one question after another, with no page open and with so many pages open, in turns; printed is the median time to the
first token of each round, and of all. Browsers are stopped meanwhile, as if they were on other machines. The browser is
told not to put pages in the background to sleep. Needs the extra test-browser and Chromium.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from tests.served import served
from tests.ui.conftest import DEMO, FLAGS

from tilewise.sse import read_events

BINARY = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime / 1000"
NEVER_SLEEP = ["--disable-background-timer-throttling", "--disable-renderer-backgrounding"]


def first_paint(browser: Browser, address: str) -> float:
    """Return the seconds from asking for the page to the first thing that is seen."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#ask textarea")
    seconds = float(page.evaluate(PAINT))
    context.close()
    return seconds


@contextmanager
def open_pages(browser: Browser, address: str, count: int) -> Iterator[None]:
    """Pages that show the chat, each in a context of its own, since one has six connections a host.

    Browsers are on other machines: they are stopped while the block runs, and their connections stay open.
    """
    contexts = [browser.new_context() for _ in range(count)]
    for context in contexts:
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#ask textarea")
    time.sleep(3 if count else 0)
    subprocess.run(["pkill", "-STOP", "-f", Path(BINARY).name], check=False)
    yield
    subprocess.run(["pkill", "-CONT", "-f", Path(BINARY).name], check=False)
    for context in contexts:
        context.close()


def body_about(chance: np.random.Generator) -> dict[str, Any]:
    """Return a question about a picture of noise."""
    content = io.BytesIO()
    Image.fromarray(chance.integers(0, 256, (112, 112, 3), np.uint8)).save(content, "PNG")
    url = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is the word?"}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 4, "temperature": 0, "stream": True}


def first_token(client: httpx.Client, url: str, body: dict[str, Any]) -> float:
    began, seconds = time.perf_counter(), None
    with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        for data in read_events(answer.iter_bytes()):
            if seconds is None and '"content":"' in data and '"content":""' not in data:
                seconds = time.perf_counter() - began
    if seconds is None:
        raise SystemExit("an answer without any token")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--paints", type=int, default=9)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    chance, tokens = np.random.default_rng(), {0: [], args.pages: []}
    with served(str(DEMO), "--ui") as server, sync_playwright() as playwright, httpx.Client(timeout=60) as client:
        browser = playwright.chromium.launch(executable_path=BINARY, args=[*FLAGS, *NEVER_SLEEP])
        address = f"{server.url}/ui"
        first_paint(browser, address)  # the server compiles the page
        paints = [first_paint(browser, address) for _ in range(args.paints)]
        print(f"first paint: median {statistics.median(paints):.2f} s, {min(paints):.2f} to {max(paints):.2f}")
        for number in range(args.rounds):
            for pages in tokens:
                with open_pages(browser, address, pages):
                    bodies = [body_about(chance) for _ in range(args.requests)]
                    taken = [first_token(client, server.url, body) for body in bodies]
                tokens[pages] += taken
                print(f"round {number + 1}, {pages} pages: first token {statistics.median(taken) * 1000:.1f} ms")
        browser.close()
    alone, beside = (statistics.median(taken) * 1000 for taken in tokens.values())
    print(f"first token alone {alone:.1f} ms, beside {args.pages} pages {beside:.1f} ms: {beside / alone:.3f}")


if __name__ == "__main__":
    main()
