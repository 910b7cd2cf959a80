"""A server of the demo model, the web chat over it, and a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.served import PICTURES, ROOT, Served, served

DEMO = PICTURES.parent / "checkpoint"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip


@contextmanager
def chat_over(*urls: str, port: int = 0) -> Iterator[str]:
    """Run `tilewise ui` over servers, and give its address."""
    command = [sys.executable, "-m", "tilewise", "ui", "--port", str(port), *(f"--server={url}" for url in urls)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"runs on (http://\S+)", line):
                yield found[1]
                break
        else:
            raise AssertionError(f"the web chat did not start, exit code {process.wait()}")
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(str(DEMO), "--served-model-name", "demo") as running:
        yield running


@pytest.fixture(scope="module")
def chat(server: Served) -> Iterator[str]:
    with chat_over(f"{server.url}/v1") as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS)
        yield opened
        opened.close()


class ChatPage:
    """The web chat in a browser's tab, with the handful of things that tests do with it."""

    def __init__(self, page: Any, address: str, filled: bool = True) -> None:
        self.page = page
        page.set_default_timeout(20000)
        page.goto(address)
        page.wait_for_selector("#ask textarea")
        if filled:  # no model is listed without a key
            self._wait_until_filled()

    def _wait_until_filled(self) -> None:
        self.page.wait_for_function("document.querySelector('#model input')?.value")

    def reload(self) -> None:
        self.page.reload()
        self._wait_until_filled()

    def attach(self, *names: str | Path) -> None:
        before = self.page.locator("#ask .thumbnail-item").count()
        self.page.set_input_files("#ask input[type=file]", [str(PICTURES / name) for name in names])
        self.page.wait_for_function(
            f"document.querySelectorAll('#ask .thumbnail-item').length == {before + len(names)}", timeout=20000
        )

    def ask(self, question: str) -> None:
        self.page.fill("#ask textarea", question)
        self.page.keyboard.press("Enter")

    def draw(self, *points: tuple[int, int]) -> None:
        """Draw a line through points of the pad, in pixels from its middle, and add the drawing to the question."""
        self.page.get_by_text("Draw", exact=True).first.click()
        self.page.get_by_label("Brush", exact=True).first.click()
        canvas = self.page.locator("canvas").last
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x + points[0][0], y + points[0][1])
        self.page.mouse.down()
        for right, down in points[1:]:
            self.page.mouse.move(x + right, y + down, steps=10)
        self.page.mouse.up()
        self.page.click("#use-sketch")
        self.page.wait_for_selector("#ask .thumbnail-item")

    def answers(self) -> Any:
        return self.page.locator("#talk .message.bot")

    def answer(self, number: int = 0) -> str:
        """Wait for an answer to be whole, and return its text."""
        whole = f"[...document.querySelectorAll('#talk .message.bot')].slice({number}).some(e => e.innerText.trim())"
        pending = "document.querySelector('#talk .message.pending, #talk .message.bot [aria-label*=Loading]')"
        self.page.wait_for_function(
            f"{whole} && !{pending} && !document.querySelector('#talk').innerText.includes('Loading content')",
            timeout=60000,
        )
        self.page.wait_for_selector("#ask .submit-button", timeout=60000)
        return str(self.answers().nth(number).inner_text()).strip()


@pytest.fixture
def open_chat(browser: Any, chat: str) -> Iterator[Any]:
    """A function that opens the chat in a tab of its own; keywords are playwright's for a context."""
    contexts = []

    def open_page(address: str = chat, filled: bool = True, **options: Any) -> ChatPage:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        return ChatPage(contexts[-1].new_page(), address, filled)

    yield open_page
    for context in contexts:
        context.close()
