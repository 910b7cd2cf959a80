"""The words of the web chat in English and Chinese; the browser's language chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
"""Key -> English, Chinese."""


def translations() -> tuple[Any, Callable[[str], Any]]:
    """Return gradio's table of translations, and the function that makes a label of a key."""
    import gradio

    # gradio has words of its own, under keys such as `status`.
    english = {f"tilewise_{key}": words[0] for key, words in WORDS.items()}
    chinese = {f"tilewise_{key}": words[1] for key, words in WORDS.items()}
    table = gradio.I18n(en=english, zh=chinese, **{"zh-CN": chinese})
    return table, lambda key: table(f"tilewise_{key}")
