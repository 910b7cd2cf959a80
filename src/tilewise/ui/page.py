"""The web chat's page: tabs for a conversation, a comparison and the server's state, over OpenAI-compatible servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from tilewise.ui.chat_tab import MOST_BYTES, PICTURES, ChatTab
from tilewise.ui.compare_tab import CompareTab
from tilewise.ui.servers import Servers
from tilewise.ui.status_tab import StatusTab

HERE = Path(__file__).parent
_CLEAN_EVERY, _KEPT_SECONDS = 3600, 24 * 3600  # of files that visitors send: they lie in a folder of this machine
WORDS: dict[str, tuple[str, str]] = {
    "chat": ("Chat", "对话"),
    "compare": ("Compare", "对比"),
    "status": ("Status", "状态"),
    "ask": ("Ask about a picture: drop it here, paste it, or take one", "就图片提问:拖入、粘贴或拍摄一张图片"),
    "model": ("Model", "模型"),
    "key": ("API key", "API 密钥"),
    "system": ("System prompt", "系统提示词"),
    "system_note": ("Empty: the one that the model was trained with", "留空则使用模型训练时的提示词"),
    "temperature": ("Temperature", "温度"),
    "top_p": ("Top-p", "Top-p"),
    "max_tokens": ("Most tokens of an answer", "回答的最大 token 数"),
    "seed": ("Seed", "随机种子"),
    "tiles": ("Most tiles of a picture", "每张图片的最大切片数"),
    "tiles_note": ("More tiles show more detail and cost more tokens", "切片越多,细节越清楚,占用的 token 也越多"),
    "detail": ("Detail", "细节"),
    "detail_note": (
        "OpenAI's word: what it means, the server says (--detail-tiles)",
        "OpenAI 的 detail 字段,含义由服务器决定(--detail-tiles)",
    ),
    "thinking": ("Think first", "先思考再回答"),
    "settings": ("Settings", "设置"),
    "seen": ("What the model sees", "模型看到的内容"),
    "found": ("Boxes in the answer", "回答中的方框"),
    "took": ("Where the time went", "时间去向"),
    "export": ("Keep or run again", "导出"),
    "markdown": ("Download as Markdown", "下载 Markdown"),
    "new": ("New conversation", "新对话"),
    "camera": ("Camera", "相机"),
    "sketch": ("Draw", "画板"),
    "use": ("Add to the question", "加入提问"),
    "left": ("Left", "左侧"),
    "right": ("Right", "右侧"),
    "question": ("Question", "问题"),
    "running": ("Requests", "请求"),
    "speed": ("Tokens and tiles a second", "每秒 token 数与切片数"),
    "memory": ("Cache in use, in percent", "缓存使用率(%)"),
    "hits": ("Hit rates, in percent", "命中率(%)"),
    "latency": ("Seconds of a request, by part", "请求各阶段用时(秒)"),
}
"""Words of the page by key, in English and Chinese; the browser's language chooses."""


def build_page(servers: Servers) -> tuple[gr.Blocks, dict[str, Any]]:
    """Return the page, and the arguments with which gradio mounts it."""
    table, words = translations()
    with gr.Blocks(
        title="Tilewise", analytics_enabled=False, fill_width=True, delete_cache=(_CLEAN_EVERY, _KEPT_SECONDS)
    ) as page:
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


def translations() -> tuple[Any, Callable[[str], Any]]:
    """Return gradio's table of translations, and the function that makes a label of a key."""
    # gradio has words of its own, under keys such as `status`.
    english = {f"tilewise_{key}": words[0] for key, words in WORDS.items()}
    chinese = {f"tilewise_{key}": words[1] for key, words in WORDS.items()}
    table = gr.I18n(en=english, zh=chinese, **{"zh-CN": chinese})
    return table, lambda key: table(f"tilewise_{key}")
