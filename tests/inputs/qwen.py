"""The Qwen vocabulary, as the `dashscope` package ships it in a data file, with the added tokens of InternVL."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from tests.inputs.vocabulary import byte_letters

PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BASE = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN25 = [f"<|qwen_{i}|>" for i in range(151646, 151665)]  # vision, box and tool tokens, whose names do not matter here
QWEN3 = [*QWEN25, "<tool_response>", "</tool_response>", "<think>", "</think>"]
INTERNVL = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]

Vocabulary = tuple[dict[str, int], list[tuple[str, str]]]


def ranks_file() -> Path | None:
    package = importlib.util.find_spec("dashscope")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    return path if path.exists() else None


def read_vocabulary(path: Path) -> Vocabulary:
    """Vocabulary and merges: every split of a token into two known ones is a merge, in the token's rank."""
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, path.read_text().splitlines())}
    letters = byte_letters()
    text = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [
        (text[token[:cut]], text[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    return {text[token]: rank for token, rank in ranks.items()}, merges


def definition_with(vocabulary: Vocabulary, added: Sequence[str]) -> str:
    """A tokenizer.json of the vocabulary, Qwen's first tokens, those of one generation, and InternVL's."""
    vocab, merges = vocabulary
    fast = FastTokenizer(models.BPE(vocab, merges, ignore_merges=True))
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, normalized=False) for token in [*BASE, *added, *INTERNVL]])
    return str(fast.to_str())
