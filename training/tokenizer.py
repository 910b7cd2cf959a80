"""The demo's tokenizer: a small byte-level BPE with the published special tokens.

Trained on the questions and answers of the tasks and on the system text, so that these are few tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from prompt import SYSTEM_TEXT
from sample import PLACE_PHRASES, QUESTIONS
from vocabulary import CHINESE_COLORS, CHINESE_SHAPES, COLORS, PLACES, SHAPES, WORDS, plural

LARGEST_VOCABULARY = 1400
# The split rule of the Qwen2 tokenizers: digits stand alone, a word takes one leading mark or space.
SPLIT_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)


def training_text() -> list[str]:
    """Every text the tasks use, the frequent ones repeated."""
    lines = [SYSTEM_TEXT, "system\n", "user\n", "assistant\n", "Image-1: ", "\nImage-2: ", "]]", "[["] * 40
    lines += [wording for wordings in QUESTIONS.values() for wording in wordings] * 10
    lines += [wording.replace("W", "And w", 1) for group in QUESTIONS.values() for wording in group] * 5
    names = [*WORDS, *COLORS, *SHAPES, *map(plural, SHAPES), *PLACES, *PLACE_PHRASES.values(), "Yes", "No"]
    lines += [form for name in names for form in (name, " " + name)] * 10
    lines += [*CHINESE_COLORS.values(), *CHINESE_SHAPES.values()] * 20
    lines += [f" {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] * 40
    return lines


def train_tokenizer() -> Tokenizer:
    """Train the tokenizer; the result depends on the task texts only."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_RULE), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST_VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def added_tokens_table(tokenizer: Tokenizer) -> dict[str, dict[str, object]]:
    """The special tokens in the layout of tokenizer_config.json."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in SPECIAL_TOKENS}


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the two files transformers reads beside it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    others = [token for token in SPECIAL_TOKENS if token not in names.values()]
    special_map = {**names, "additional_special_tokens": others}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added_tokens_table(tokenizer),
        **special_map,
        "bos_token": None,
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 2048,
    }
    for name, content in (("special_tokens_map.json", special_map), ("tokenizer_config.json", settings)):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
