"""Words that are one token each in a checkpoint's vocabulary, so that prompts have exact lengths in every peer."""

from __future__ import annotations

import re
from pathlib import Path

from tilewise.inputs.tokenizer import Tokenizer

_WORD = re.compile(r" [a-z]{3,9}")


def single_token_words(checkpoint: Path, most: int = 2000) -> list[str]:
    """The first such words, in the order of their ids, which is that of how common they are."""
    tokenizer = Tokenizer.from_folder(checkpoint)
    words = []
    for number in range(tokenizer.vocab_size):
        text = tokenizer.decode([number])
        if _WORD.fullmatch(text) and tokenizer.encode_text(text) == [number]:
            words.append(text[1:])
            if len(words) == most:
                break
    if len(words) < 100:
        raise SystemExit(f"{checkpoint}: {len(words)} words are one token each, at least 100 are needed.")
    return words
