"""Bubbles: a conversation as gradio shows it, and from a bubble back to its exchange."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tilewise.outputs.boxes import without_marks
from tilewise.ui.conversation import ChatConversation

_FENCED = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
_TAG = re.compile(r"<(?=[a-zA-Z/!?])")
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]


def safe_markdown(text: str) -> str:
    """Return a model's text as Markdown without HTML or pictures: both become the characters that they are.

    A picture of another host would tell that host whatever the model was led to write into its address.

    >>> safe_markdown("<script> and `<b>`")
    '&lt;script> and `<b>`'
    """
    parts = _FENCED.split(text)
    return "".join(
        part if number % 2 else _TAG.sub("&lt;", part).replace("![", "&#33;&#91;") for number, part in enumerate(parts)
    )


def bubbles(conversation: ChatConversation) -> list[dict[str, Any]]:
    """Return the conversation as gradio's Chatbot shows it."""
    found: list[dict[str, Any]] = []
    for exchange in conversation.exchanges:
        files = [{"path": file, "alt_text": Path(file).name} for file in exchange.files]
        question = safe_markdown(exchange.question)
        found.append({"role": "user", "content": [*files, question] if files else question})
        if exchange.reasoning:
            status = "done" if exchange.answer else "pending"
            thought = {"title": "💭", "status": status}
            found.append({"role": "assistant", "content": safe_markdown(exchange.reasoning), "metadata": thought})
        if exchange.answer:
            shown = without_marks(exchange.answer).strip() or exchange.answer
            found.append({"role": "assistant", "content": safe_markdown(shown)})
        if exchange.problem:
            found.append({"role": "assistant", "content": f"⚠️ {safe_markdown(exchange.problem)}"})
    return found


def exchange_at(conversation: ChatConversation, index: Any) -> int:
    """Return the number of the exchange that a bubble belongs to, by gradio's index of the bubble."""
    place = index[0] if isinstance(index, (list, tuple)) else index
    shown = 0
    for number, exchange in enumerate(conversation.exchanges):
        shown += 1 + bool(exchange.reasoning) + bool(exchange.answer) + bool(exchange.problem)
        if place < shown:
            return number
    return len(conversation.exchanges) - 1
