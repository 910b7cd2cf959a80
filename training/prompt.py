"""The prompt of a conversation as token ids, with the places where the loss is taken."""

from __future__ import annotations

from tokenizers import Tokenizer

from sample import Turn

SYSTEM_TEXT = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
TOKENS_PER_TILE = 16


def image_text(tiles: int) -> str:
    """What stands in the prompt for one picture."""
    return "<img>" + "<IMG_CONTEXT>" * (TOKENS_PER_TILE * tiles) + "</img>"


def picture_lines(tiles_per_picture: list[int]) -> str:
    """The lines before the first question, one for each picture."""
    if len(tiles_per_picture) == 1:
        return image_text(tiles_per_picture[0]) + "\n"
    numbered = enumerate(tiles_per_picture, start=1)
    return "".join(f"Image-{number}: {image_text(tiles)}\n" for number, tiles in numbered)


def user_text(question: str) -> str:
    """The user's part of a turn up to where the answer begins."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def encode_conversation(tokenizer: Tokenizer, tiles_per_picture: list[int], turns: list[Turn]) -> tuple[list, list]:
    """Token ids, and for each position the turn (1, 2, ...) whose answer it belongs to or 0."""
    text = f"<|im_start|>system\n{SYSTEM_TEXT}<|im_end|>\n"
    tokens: list[int] = []
    owners: list[int] = []
    pictures = picture_lines(tiles_per_picture)
    for number, turn in enumerate(turns, start=1):
        text += user_text(pictures + turn.question)
        asked = tokenizer.encode(text, add_special_tokens=False).ids
        answered = tokenizer.encode(turn.answer + "<|im_end|>", add_special_tokens=False).ids
        tokens += asked + answered
        owners += [0] * len(asked) + [number] * len(answered)
        text, pictures = "\n", ""
    return tokens, owners
