"""The web chat's page: tabs for a conversation, a comparison and the server's state, over OpenAI-compatible servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from tilewise.ui.chat_tab import MOST_BYTES, PICTURES, ChatTab
from tilewise.ui.compare_tab import CompareTab
from tilewise.ui.servers import Servers
from tilewise.ui.status_tab import StatusTab
from tilewise.ui.words import translations

HERE = Path(__file__).parent


def build_page(servers: Servers) -> tuple[gr.Blocks, dict[str, Any]]:
    """Return the page, and the arguments with which gradio mounts it."""
    table, words = translations()
    with gr.Blocks(title="Tilewise", analytics_enabled=False, fill_width=True) as page:
        with gr.Row(elem_id="head"):
            gr.HTML('<h1 class="name">Tilewise</h1>')
            model = gr.Dropdown([], label=words("model"), elem_id="model", scale=2, allow_custom_value=False)
            key = gr.Textbox(label=words("key"), type="password", elem_id="key", scale=1)
        with gr.Tab(words("chat")) as chat:
            talk = ChatTab(servers, words, model, key, examples())
        with gr.Tab(words("compare")) as comparing:
            compared = CompareTab(servers, words, key)
        with gr.Tab(words("status")) as opened:
            status = StatusTab(servers, words, model, key)
        models = [model, compared.left.model, compared.right.model]

        def refresh(given: str) -> list[Any]:
            choices = servers.choices(given or None)
            first, last = (choices[0], choices[-1]) if choices else (None, None)
            return [gr.Dropdown(choices, value=chosen) for chosen in (first, first, last)]

        key.change(refresh, key, models, show_progress="hidden")
        page.load(refresh, key, models, show_progress="hidden").then(
            talk.reopen, [talk.kept, *talk.inputs], talk.shown, show_progress="hidden"
        )
        opened.select(lambda: gr.Timer(active=True), None, status.timer)
        for other in (chat, comparing):
            other.select(lambda: gr.Timer(active=False), None, status.timer)
    page.queue(default_concurrency_limit=64)
    files = {"css_paths": HERE / "style.css", "js": (HERE / "page.js").read_text()}
    return page, {"i18n": table, **files, "theme": theme(), "max_file_size": 4 * MOST_BYTES}


def theme() -> gr.themes.Base:
    """Return a theme whose fonts every machine has: nothing is fetched from elsewhere. Small words are dark enough."""
    soft = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    labels = ("block_title_text_color", "block_label_text_color")
    notes = ("block_info_text_color", "body_text_color_subdued")
    light = dict.fromkeys((*labels, *notes), "*neutral_700")
    dark = {f"{name}_dark": "white" for name in labels} | {f"{name}_dark": "*neutral_300" for name in notes}
    return soft.set(**light, **dark)


def examples() -> list[tuple[str, list[str]]]:
    """Return questions about the shipped pictures."""
    tasks = json.loads((PICTURES.parent / "questions.json").read_text())
    return [(task["turns"][0]["question"], [str(PICTURES / name) for name in task["pictures"]]) for task in tasks[:6]]
