"""The web chat as a person uses it, in Chromium, over a real server of the demo model."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.served import PICTURES, ROOT, Served, served, until
from tests.tiny import SPECS, write_original
from tests.ui.conftest import DEMO, chat_over

pytestmark = pytest.mark.browser


def test_a_question_about_a_picture(open_chat: Any) -> None:
    chat = open_chat()
    chat.attach("color_and_shape.png")
    chat.ask("What color is the circle?")
    assert chat.answer() == "yellow"
    assert "tokens" in chat.page.locator("#strip").inner_text()


def test_a_second_turn_sees_the_first_ones_picture(open_chat: Any) -> None:
    chat = open_chat()
    chat.attach("reading_text.png")
    chat.ask("What is the word?")
    assert chat.answer() == "cat"
    chat.ask("And what color is the word?")
    assert chat.answer(1) == "red"


def test_boxes_are_drawn_with_their_labels(open_chat: Any) -> None:
    chat = open_chat()
    chat.attach("color_and_shape.png")
    chat.ask("Find <ref>red cross</ref> and give its box.")
    assert chat.answer() == "red cross"
    chat.page.wait_for_selector("#boxes .label")
    assert chat.page.locator("#boxes .label").inner_text() == "red cross"
    box = chat.page.locator("#boxes rect.box")
    assert [box.get_attribute(name) for name in ("x", "y", "width", "height")] == ["0", "0", "250", "250"]


def test_the_tile_grid_follows_the_slider(open_chat: Any) -> None:
    chat = open_chat()
    chat.attach("small_print.png")
    chat.page.wait_for_selector("#grid rect.tile")
    assert chat.page.locator("#grid rect.tile").count() == 12
    chat.page.get_by_text("Settings", exact=True).first.click()
    chat.page.fill("#tiles input[type=number]", "4")
    chat.page.keyboard.press("Tab")
    chat.page.wait_for_function("document.querySelectorAll('#grid rect.tile').length <= 4")


def test_more_tiles_read_more(open_chat: Any) -> None:
    chat = open_chat()
    chat.page.get_by_role("tab", name="Compare").click()
    chat.page.set_input_files("#compare-ask input[type=file]", str(PICTURES / "small_print.png"))
    chat.page.wait_for_selector("#compare-ask .thumbnail-item")
    chat.page.fill("#compare-ask textarea", "What does the small print say?")
    chat.page.keyboard.press("Enter")
    chat.page.wait_for_selector("#right-answer .differs", timeout=60000)
    chat.page.wait_for_selector("#left-strip .strip", timeout=60000)
    assert (
        chat.page.locator("#right-answer .answer").inner_text()
        != chat.page.locator("#left-answer .answer").inner_text()
    )
    assert "13 tiles" in chat.page.locator("#right-strip").inner_text()


def test_html_of_a_question_is_text(open_chat: Any) -> None:
    chat = open_chat()
    chat.ask("<script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> What is this?")
    chat.answer()
    assert "<script>" in chat.page.locator("#talk .message.user").inner_text()
    assert chat.page.title() == "Tilewise"


def test_an_answer_is_stopped_and_kept(open_chat: Any, tmp_path: Path) -> None:
    """By a model of noise, which never comes to an end by itself."""
    noise = write_original(tmp_path / "noise", SPECS["qwen2-300m"])
    flags = (str(noise), "--served-model-name", "noise", "--max-model-len", "20000")
    longer = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    with served(*flags, environment=longer) as server, chat_over(f"{server.url}/v1") as address:
        chat = open_chat(address)
        chat.page.get_by_text("Settings", exact=True).first.click()
        chat.page.get_by_label("Most tokens of an answer").fill("15000")
        chat.ask("What is this?")
        chat.page.wait_for_selector("#talk .message.bot")
        chat.page.click("#ask .stop-button")
        chat.page.wait_for_selector("#ask .submit-button")
        kept = chat.answers().first.inner_text()
        assert kept
        until(lambda: server.metric("vllm:num_requests_running") == 0)  # the engine has heard of it
        chat.page.get_by_label("Most tokens of an answer").fill("5")
        chat.ask("And this?")
        assert chat.answer(1)
        assert chat.answers().first.inner_text().startswith(kept[:20])


def test_a_question_is_edited(open_chat: Any) -> None:
    chat = open_chat()
    chat.attach("reading_text.png")
    chat.ask("What is the word?")
    assert chat.answer() == "cat"
    chat.page.locator("#talk button[title='Edit']").first.click()
    chat.page.locator("#talk textarea").fill("Read the number.")
    chat.page.locator("#talk button[title='Submit']").click()
    chat.page.wait_for_function(
        "document.querySelector('#talk .message.bot')?.innerText.trim() == '388'", timeout=60000
    )
    assert chat.page.locator("#talk img").count() >= 1


def test_a_question_is_taken_back(open_chat: Any) -> None:
    chat = open_chat()
    chat.attach("reading_text.png")
    chat.ask("What is the word?")
    chat.answer()
    chat.page.locator("#talk button[title='Undo']").first.click()
    chat.page.wait_for_function("document.querySelector('#ask textarea').value == 'What is the word?'")
    assert chat.page.locator("#ask .thumbnail-item").count() == 1


def test_examples_can_be_asked(open_chat: Any) -> None:
    chat = open_chat()
    chat.page.locator("#talk .example").first.click()
    assert chat.answer() == "cat"


def test_what_is_drawn_is_asked_about(open_chat: Any) -> None:
    chat = open_chat()
    chat.draw((-80, -80), (80, -80), (80, 80), (-80, 80), (-80, -80))
    chat.ask("What did I draw?")
    assert chat.answer() == "square"
    assert "448x448" in chat.page.locator("#grid").inner_text()
    chat.ask("What color is it?")
    assert chat.answer(1) == "black"


def test_a_file_that_is_no_picture_is_named(open_chat: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    chat = open_chat()
    chat.attach(broken)
    chat.ask("What is this?")
    chat.page.wait_for_selector(".toast-body")
    assert "broken.png" in chat.page.locator(".toast-body").first.inner_text()
    assert chat.page.input_value("#ask textarea") == "What is this?"


def test_a_server_that_is_gone_and_comes_back(open_chat: Any) -> None:
    with served(str(DEMO), "--served-model-name", "demo") as first:
        port = first.url.rpartition(":")[2]
        with chat_over(f"{first.url}/v1") as address:
            chat = open_chat(address)
            chat.attach("reading_text.png")
            chat.ask("What is the word?")
            assert chat.answer() == "cat"
            first.stop()
            chat.ask("And what color is the word?")
            assert "No server answers" in chat.answer(1)
            with served(str(DEMO), "--served-model-name", "demo", "--port", port):
                chat.ask("And what color is the word?")
                chat.page.wait_for_function(
                    "[...document.querySelectorAll('#talk .message.bot')].at(-1).innerText.trim() == 'red'",
                    timeout=60000,
                )


def test_a_key_is_asked_for(open_chat: Any) -> None:
    flags = ("--served-model-name", "demo", "--api-key", "secret")
    with served(str(DEMO), *flags) as locked, chat_over(f"{locked.url}/v1") as address:
        chat = open_chat(address, filled=False)
        chat.ask("What is this?")
        assert "asks for a key: type it into the field" in chat.answer()
        chat.page.fill("#key input", "ключ")
        chat.page.keyboard.press("Tab")
        chat.ask("What is this?")
        chat.page.wait_for_function(
            "[...document.querySelectorAll('#talk .message.bot')].at(-1)?.innerText.includes('ASCII')", timeout=60000
        )
        chat.page.fill("#key input", "secret")
        chat.page.keyboard.press("Tab")
        chat.page.wait_for_function("document.querySelector('#model input').value == 'demo'")
        chat.attach("reading_text.png")
        chat.ask("What is the word?")
        chat.page.wait_for_function(
            "[...document.querySelectorAll('#talk .message.bot')].at(-1)?.innerText.trim() == 'cat'", timeout=60000
        )


def test_status_shows_requests(open_chat: Any) -> None:
    chat = open_chat()
    chat.page.get_by_role("tab", name="Status").click()
    chat.page.wait_for_selector("#plot-speed polyline[points*=',']", state="attached", timeout=20000)
    assert "running" in chat.page.locator("#status-line").inner_text()


def test_chinese(open_chat: Any) -> None:
    chat = open_chat(locale="zh-CN")
    chat.page.wait_for_selector("role=tab[name='对比']")
    chat.attach("chinese_question.png")
    chat.ask("图中的形状是什么颜色？")
    assert chat.answer() == "红色"


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_phone_and_dark(open_chat: Any, width: int, dark: bool) -> None:
    chat = open_chat(viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light")
    chat.attach("color_and_shape.png")
    chat.ask("What color is the circle?")
    assert chat.answer() == "yellow"
    wide = chat.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, "the page is wider than the screen"
    assert chat.page.evaluate("document.body.classList.contains('dark')") == dark


def test_the_conversation_as_programs(open_chat: Any, server: Served, tmp_path: Path) -> None:
    chat = open_chat()
    chat.attach("color_and_shape.png")
    chat.ask("What color is the circle?")
    assert chat.answer() == "yellow"
    chat.page.get_by_text("Keep or run again").click()
    (tmp_path / "color_and_shape.png").write_bytes((PICTURES / "color_and_shape.png").read_bytes())
    runs = {"curl": ["bash"], "openai": [sys.executable], "LLM": [sys.executable]}
    for name, command in runs.items():
        chat.page.get_by_role("tab", name=name).click()
        code = chat.page.locator("#export .cm-content:visible").inner_text()
        done = subprocess.run(
            command, input=code, capture_output=True, text=True, cwd=tmp_path, check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
        assert "yellow" in done.stdout, f"{name}: {done.stderr}"


def test_a_conversation_is_there_again_when_the_page_is_loaded_anew(open_chat: Any) -> None:
    chat = open_chat()
    chat.attach("reading_text.png")
    chat.ask("What is the word?")
    assert chat.answer() == "cat"
    chat.reload()
    assert chat.answer() == "cat"
    assert chat.page.locator("#talk img").count() >= 1
    chat.ask("And what color is the word?")
    assert chat.answer(1) == "red"
    chat.page.click("#new")
    chat.page.wait_for_function("!document.querySelector('#talk .message')")
    chat.reload()
    chat.page.wait_for_selector("#talk .example")
    assert not chat.answers().count()


def test_keys(open_chat: Any) -> None:
    chat = open_chat()
    chat.page.keyboard.press("Alt+2")
    chat.page.wait_for_selector("#compare-ask")
    chat.page.keyboard.press("Alt+1")
    chat.page.wait_for_selector("#ask textarea")
    chat.page.locator("body").click(position={"x": 5, "y": 5})
    chat.page.keyboard.press("/")
    chat.page.keyboard.type("a/b")
    assert chat.page.input_value("#ask textarea") == "a/b"
    chat.page.keyboard.press("Enter")
    chat.answer()
    chat.page.keyboard.press("Alt+n")
    chat.page.wait_for_function("!document.querySelector('#talk .message')")


def test_detail_changes_the_tiles_where_the_server_says_so(open_chat: Any) -> None:
    flags = ("--served-model-name", "demo", "--detail-tiles", '{"low": 1}')
    with served(str(DEMO), *flags) as server, chat_over(f"{server.url}/v1") as address:
        chat = open_chat(address)
        chat.attach("small_print.png")
        chat.page.get_by_text("Settings", exact=True).first.click()
        chat.page.get_by_label("low", exact=True).check()
        chat.page.wait_for_function("document.querySelectorAll('#grid rect.tile').length == 1")
        chat.ask("What does the small print say?")
        chat.answer()
        assert "1 tiles" in chat.page.locator("#strip").inner_text()


def test_a_file_that_is_too_large_and_a_long_film(open_chat: Any, tmp_path: Path) -> None:
    large, film = tmp_path / "large.png", tmp_path / "film.gif"
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(51 * 2**20))
    pages = [Image.new("RGB", (64, 64), (page % 256, 0, 0)) for page in range(300)]
    pages[0].save(film, save_all=True, append_images=pages[1:])
    chat = open_chat()
    chat.attach(large)
    chat.ask("What is this?")
    chat.page.wait_for_selector(".toast-body")
    assert "large.png has 51 MB, the limit is 50 MB" in chat.page.locator(".toast-body").first.inner_text()
    assert chat.page.input_value("#ask textarea") == "What is this?"
    chat.reload()
    chat.attach(film)
    chat.ask("What shape is this?")
    assert chat.answer()


def test_a_context_that_is_full_keeps_the_conversation(open_chat: Any) -> None:
    chat = open_chat()
    chat.attach("reading_text.png")
    chat.ask("What is the word?")
    assert chat.answer() == "cat"
    chat.ask("And what color is the word? " + "red " * 3000)
    assert "2048" in chat.answer(1)
    chat.ask("And what color is the word?")
    chat.page.wait_for_function(
        "[...document.querySelectorAll('#talk .message.bot')].at(-1).innerText.trim() == 'red'", timeout=60000
    )


@pytest.mark.parametrize("dark", [False, True])
def test_no_serious_barrier_is_found(open_chat: Any, dark: bool) -> None:
    """By axe-core, on each tab."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    chat = open_chat(color_scheme="dark" if dark else "light")
    chat.attach("color_and_shape.png")
    chat.ask("Find <ref>red cross</ref> and give its box.")
    chat.answer()
    for tab in ("Chat", "Compare", "Status"):
        chat.page.get_by_role("tab", name=tab).click()
        chat.page.wait_for_timeout(1000)
        found = [barrier for barrier in axe.run(chat.page).response["violations"]
                 if barrier["impact"] in ("serious", "critical")]  # fmt: skip
        said = [(barrier["id"], [node["html"][:160] for node in barrier["nodes"]][:4]) for barrier in found]
        assert not said, f"{tab}: {said}"


NAMED = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("handler", ["add_file", "add_sketch", "look", "send", "ask"])
def test_no_file_of_the_machine_can_be_named(chat: str, tmp_path: Path, handler: str) -> None:
    """Over gradio's own API, by whoever reaches the page."""
    canary = tmp_path / "canary.png"
    Image.new("RGB", (8, 8)).save(canary)
    file = {"path": str(canary), **NAMED}
    asked = {"text": "What is this?", "files": [file]}
    sketched = {"background": file, "layers": [], "composite": file}
    settings = ["demo", "", "", 12, "auto", False, 0, 1, 8, None]
    data = {
        "add_file": [{"text": "", "files": []}, file],
        "add_sketch": [{"text": "", "files": []}, sketched],
        "look": [asked, "demo", 12, "auto"],
        "send": [asked, *settings],
        "ask": [asked, "", "demo", 1, 0, "demo", 12, 0],
    }
    began = httpx.post(f"{chat}/gradio_api/call/{handler}", json={"data": data[handler]})
    said = httpx.get(f"{chat}/gradio_api/call/{handler}/{began.json()['event_id']}", timeout=60).text
    assert "was not uploaded by a user" in said, said
    assert httpx.get(f"{chat}/gradio_api/file={canary}").status_code == 403


@pytest.mark.parametrize("handler", ["add_file", "send"])
def test_no_address_is_fetched(chat: str, handler: str) -> None:
    """CVE-2024-47167, CVE-2026-28416: the page's server asks others for whoever reaches it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        file = {"path": url, "url": url, **NAMED}
        settings = ["demo", "", "", 12, "auto", False, 0, 1, 8, None]
        data = {"add_file": [{"text": "", "files": []}, file], "send": [{"text": "a", "files": [file]}, *settings]}
        began = httpx.post(f"{chat}/gradio_api/call/{handler}", json={"data": data[handler]})
        said = httpx.get(f"{chat}/gradio_api/call/{handler}/{began.json()['event_id']}", timeout=60).text
        assert "event: error" in said, said
        for path in (f"proxy={url}", f"file={url}"):
            assert httpx.get(f"{chat}/gradio_api/{path}").status_code in (302, 400, 403, 404), path
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_picture_of_another_host_is_not_loaded(open_chat: Any) -> None:
    chat = open_chat()
    chat.ask("![leak](http://127.0.0.1:9/leak.png) What is this?")
    chat.answer()
    assert "![leak](http" in chat.page.locator("#talk .message.user").inner_text()
    assert not chat.page.locator("#talk img[src*=leak]").count()


def test_no_picture_is_wider_than_its_panel(open_chat: Any, tmp_path: Path) -> None:
    Image.new("RGB", (3000, 28), "red").save(tmp_path / "thin.png")
    chat = open_chat()
    chat.attach(tmp_path / "thin.png")
    chat.page.wait_for_selector("#grid rect.tile")
    assert chat.page.locator("#grid rect.tile").count() == 12
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= 1280
