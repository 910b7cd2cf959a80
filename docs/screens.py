"""Pictures of the web chat for README and docs, written to docs/images: `python -m docs.screens ADDRESS`.

ADDRESS is where `tilewise ui` shows the demo model, freshly started. Needs the extra test-browser and Chromium.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from tests.served import PICTURES
from tests.ui.conftest import FLAGS, ChatPage

IMAGES = Path(__file__).parent / "images"


BOX = ("color_and_shape.png", "Find <ref>red cross</ref> and give its box.")


def chat(page: Any, address: str, name: str, picture: str, question: str) -> None:
    shown = ChatPage(page, address)
    shown.attach(picture)
    shown.ask(question)
    shown.answer()
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / f"{name}.png")


def sketch(page: Any, address: str) -> None:
    shown = ChatPage(page, address)
    tips = [
        (round(110 * math.sin(angle)), round(-110 * math.cos(angle))) for angle in (math.pi * n * 0.8 for n in range(6))
    ]
    shown.draw(*tips)
    shown.ask("What did I draw?")
    shown.answer()
    shown.ask("What color is it?")
    shown.answer(1)
    page.locator("#talk").scroll_into_view_if_needed()
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / "sketch.png")


def comparison(page: Any, address: str) -> None:
    ChatPage(page, address)
    page.get_by_role("tab", name="Compare").click()
    page.set_input_files("#compare-ask input[type=file]", str(PICTURES / "small_print.png"))
    page.wait_for_selector("#compare-ask .thumbnail-item")
    page.fill("#compare-ask textarea", "What does the small print say?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#right-answer .differs")
    page.wait_for_timeout(1500)
    page.screenshot(path=IMAGES / "compare.png")


def status(page: Any, address: str, browser: Any) -> None:
    ChatPage(page, address)
    page.get_by_role("tab", name="Status").click()
    for _ in range(3):  # something to be seen
        other = browser.new_page()
        shown = ChatPage(other, address)
        shown.attach("small_print.png")
        shown.ask("What does the small print say?")
        shown.answer()
        other.close()
        page.wait_for_timeout(3000)
    page.screenshot(path=IMAGES / "status.png")


def main(address: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    wide, phone = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        chat(browser.new_page(viewport=wide), address, "chat", "small_print.png", "What does the small print say?")
        chat(browser.new_page(viewport=phone), address, "phone", *BOX)
        chat(browser.new_page(viewport=wide, color_scheme="dark"), address, "dark", *BOX)
        asked = ("chinese_question.png", "图中的形状是什么颜色？")
        chat(browser.new_page(viewport=wide, locale="zh-CN"), address, "chinese", *asked)
        sketch(browser.new_page(viewport={"width": 1280, "height": 1100}), address)
        comparison(browser.new_page(viewport=wide), address)
        status(browser.new_page(viewport=wide), address, browser)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
