"""The five questions, by the abilities that guides to InternVL check first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["English", "Chinese"]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    category: str
    """The benchmark whose kind of question it is."""
    picture: int
    """Which of the pictures, from 0; with one picture it is always that."""
    prompt: str
    language: Language = "English"
    words: bool = True
    """Whether an answer without a letter is none; what is written in a picture may be a number."""


CASES = (
    Case("text", "TextVQA", 0, "What is the text in the illustration?", words=False),
    Case("first description", "DocVQA", 0, "Please provide a detailed description of this image."),
    Case("second description", "ChartQA", 1, "Describe what you see in this image, and name its main colors."),
    Case("reasoning", "Reasoning", 0, "Where might this picture have been taken, and how can you tell?"),
    Case("Chinese", "General", 1, "请用中文描述这张图片的内容。", "Chinese"),
)
"""The guides' test of InternVL2-2B has these five: reading, two pictures described, reasoning and Chinese."""
PICTURES = ("stop_sign", "cherry_blossom")
"""Sample pictures that stand in for those of the caller."""
