"""The special tokens of each tokenizer of the family, in the order of their ids, and tokenizer files made of them.

Sources: tokenizer_config.json and added_tokens.json of the checkpoints, and of the language models that they grew from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tilewise.weights.family import TokenizerKind

INTERNVL = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""Special tokens that every InternVL adds last."""
MERGES = (("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("i", "n"), ("a", "n"), ("Ġ", "a"), ("e", "r"), ("o", "n"))
"""Merges of byte-level BPE; Ġ is the byte of a space."""
TEXT_TOKENS = 256 + len(MERGES)


@dataclass(frozen=True)
class TwinVocabulary:
    """The tokens of a tokenizer. Ids go through `leading`, the text tokens, `trailing` and INTERNVL, in this order."""

    trailing: tuple[str, ...]
    leading: tuple[str, ...] = ()
    """Tokens in front of those of text: Sentencepiece begins with its control tokens."""
    start: str | None = None
    eos: str = "<|im_end|>"
    pad: str = "<|endoftext|>"
    ends: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")
    """`eos_token_id` of generation_config.json."""
    starts: bool = False
    """True if a start token stands before every prompt."""
    tokenizer_class: str = "Qwen2Tokenizer"
    plain: frozenset[str] = frozenset()
    """Added tokens that are text all the same: not skipped when an answer is shown."""

    @property
    def specials(self) -> tuple[str, ...]:
        return (*self.leading, *self.trailing, *INTERNVL)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids of the special tokens."""
        behind = len(self.leading) + TEXT_TOKENS
        first = {token: number for number, token in enumerate(self.leading)}
        return first | {token: behind + number for number, token in enumerate((*self.trailing, *INTERNVL))}

    @property
    def size(self) -> int:
        return len(self.specials) + TEXT_TOKENS

    @property
    def image_id(self) -> int:
        return self.ids["<IMG_CONTEXT>"]


def _reserved(first: int, last: int) -> tuple[str, ...]:
    return tuple(f"<|reserved_{number}|>" for number in range(first, last + 1))


_QWEN2 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TOOLS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
_QWEN2_5 = (
    *_QWEN2,
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *_TOOLS,
)
_THINKING = ("<tool_response>", "</tool_response>", "<think>", "</think>")
_SENTENCEPIECE = ("<unk>", "<s>", "</s>")
_INTERNLM2 = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
_HARMONY = (
    *("<|startoftext|>", "<|endoftext|>", *_reserved(200000, 200001), "<|return|>", "<|constrain|>"),
    *(*_reserved(200004, 200004), "<|channel|>", "<|start|>", "<|end|>", "<|message|>", *_reserved(200009, 200011)),
    *("<|call|>", *_reserved(200013, 200017), "<|endofprompt|>"),
)

_PHI3 = (
    *("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>"),
    *("<|placeholder4|>", "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>"),
)
_YI = ("<unk>", "<|startoftext|>", "<|endoftext|>", "<|Human|>", "<|Assistant|>", "<|System|>", *_QWEN2[1:])

VOCABULARIES: dict[TokenizerKind, TwinVocabulary] = {
    "qwen2": TwinVocabulary(trailing=_QWEN2),
    "qwen2.5": TwinVocabulary(trailing=_QWEN2_5, plain=frozenset(_TOOLS)),
    "qwen3": TwinVocabulary(trailing=(*_QWEN2_5, *_THINKING), plain=frozenset((*_TOOLS, *_THINKING))),
    "internlm2": TwinVocabulary(
        leading=_SENTENCEPIECE,
        trailing=_INTERNLM2,
        start="<s>",
        eos="</s>",
        pad="</s>",
        ends=("<|im_end|>", "<|im_start|>"),
        starts=True,
        tokenizer_class="InternLM2Tokenizer",
    ),
    "internlm3": TwinVocabulary(
        leading=_SENTENCEPIECE,
        trailing=_INTERNLM2[-2:],
        start="<s>",
        eos="</s>",
        pad="</s>",
        ends=("<|im_end|>", "</s>"),
        starts=True,
        tokenizer_class="InternLM3Tokenizer",
    ),
    "phi3": TwinVocabulary(
        leading=_SENTENCEPIECE,
        trailing=_PHI3,
        start="<s>",
        eos="<|end|>",
        ends=("<|end|>", "<|endoftext|>"),
        tokenizer_class="LlamaTokenizer",
    ),
    "llama3": TwinVocabulary(
        trailing=("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"),
        start="<|begin_of_text|>",
        pad="<|end_of_text|>",
        ends=("<|im_end|>", "<|end_of_text|>"),
        starts=True,
        tokenizer_class="PreTrainedTokenizerFast",
    ),
    "yi": TwinVocabulary(
        leading=_YI, trailing=(), start="<|startoftext|>", pad="<unk>", tokenizer_class="LlamaTokenizer"
    ),
    "gpt_oss": TwinVocabulary(
        trailing=_HARMONY,
        start="<|startoftext|>",
        eos="<|return|>",
        ends=("<|return|>", "<|endoftext|>"),
        tokenizer_class="PreTrainedTokenizerFast",
    ),
}


def tokenizer(vocabulary: TwinVocabulary) -> Tokenizer:
    """Make a tokenizer of the leading control tokens, 256 bytes and a few merges, then the other special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*vocabulary.leading, *alphabet, *("".join(pair) for pair in MERGES)]
    vocab = {token: number for number, token in enumerate(tokens)}
    found = Tokenizer(models.BPE(vocab=vocab, merges=list(MERGES)))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    for token in vocabulary.specials:
        special = token not in vocabulary.plain
        added = AddedToken(token, special=special, normalized=False)
        (found.add_special_tokens if special else found.add_tokens)([added])
    return found


def tokenizer_config(vocabulary: TwinVocabulary) -> dict[str, Any]:
    return {
        "tokenizer_class": vocabulary.tokenizer_class,
        "bos_token": vocabulary.start,
        "eos_token": vocabulary.eos,
        "pad_token": vocabulary.pad,
        "add_bos_token": vocabulary.starts,
    }
