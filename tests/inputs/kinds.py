"""One small tokenizer of every kind that InternVL checkpoints bring, and what reading a whole string with it gives.

Each kind knows the special tokens of all templates. The reference of a sentencepiece kind is the sentencepiece library
between special tokens, as the slow tokenizer classes use it; that of a byte-level kind is the definition itself.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from tests.inputs.vocabulary import CONTROL, GROUNDING, small_tokenizer
from tilewise.inputs.tokenizer import Tokenizer

TEMPLATE_MARKS = (
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|begin_of_text|>"),
)
MARKS = (*CONTROL, *TEMPLATE_MARKS)
SPARE = tuple(f"[UNUSED_TOKEN_{number}]" for number in range(6))
_CORPUS = (
    "the picture shows a red panda on a tree", "hello world\tfoo 1 22 345", "图片的内容，你好 世界", "a  b   c\n\nd",
    "<|im_start|>user\n</s> <s> [UNUSED] <0x0A>", "ababab aaaa the then <img></img>", "façade Ünï 😀 ﬁne Ⅳ",
)  # fmt: skip

NO_DUMMY_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])
"""Behind a model file: normalizer_spec { add_dummy_prefix: false }. Protobuf reads it as part of the message before."""

Ids = Callable[[str], list[int]]


@dataclass(frozen=True)
class Kind:
    """A loaded tokenizer, the ids of whole strings, and the token before every prompt."""

    tokenizer: Tokenizer
    reference: Ids
    control: frozenset[int]
    """What a user's text must never become."""
    folder: Path
    lossless: bool = True
    unigram: bool = False
    """Pieces are chosen by a sum of scores, in which "a" + "aa" and "aa" + "a" are as likely as one another: which one
    it is follows from how the sum was rounded on its way, and so from what stands in front."""

    def decides(self, text: str) -> bool:
        """The ids of a text do not depend on such a tie."""
        return not self.unigram or re.search(r"(\w)\1{2}", text) is None


def train(model_type: str = "bpe", **options: Any) -> bytes:
    """A sentencepiece model; without options as Llama's are: bytes for unknown characters, spaces kept."""
    model = io.BytesIO()
    plain = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 20),
        model_writer=model,
        model_type=model_type,
        hard_vocab_limit=False,
        minloglevel=3,
        **{"vocab_size": 480, **plain, **options},
    )
    return model.getvalue()


def numbered(first: int, names: tuple[str, ...], **flags: bool) -> dict[str, Any]:
    """Entries of `added_tokens_decoder`."""
    usual = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {str(number): {"content": name, **usual, **flags} for number, name in enumerate(names, first)}


def write(folder: Path, **files: Any) -> Path:
    """JSON files by name, and `model` for tokenizer.model."""
    for name, content in files.items():
        if name == "model":
            (folder / "tokenizer.model").write_bytes(content)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def between_special_tokens(model: bytes, config: dict[str, Any]) -> Ids:
    """What a slow tokenizer class does: cut special tokens out, then segment each text between them by itself."""
    only_first = config.get("legacy") is False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX * only_first)
    tokens = {token["content"]: (int(number), token) for number, token in config["added_tokens_decoder"].items()}
    for number in range(processor.get_piece_size()):
        if processor.is_control(number) or processor.is_unknown(number):
            plain = (number, {"lstrip": False, "rstrip": False})
            tokens.setdefault(processor.id_to_piece(number), plain)

    def ids_of(text: str) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text)
        for place in range(1, len(parts), 2):
            token = tokens[parts[place]][1]
            parts[place - 1] = parts[place - 1].rstrip() if token["lstrip"] else parts[place - 1]
            parts[place + 1] = parts[place + 1].lstrip() if token["rstrip"] else parts[place + 1]
        if only_first and parts[0] and parts[0][0] not in " ▁":
            parts[0] = " " + parts[0]
        ids: list[int] = []
        for place, part in enumerate(parts):
            ids += [tokens[part][0]] if place % 2 else processor.encode(part)
        return ids

    return ids_of


def _sentencepiece(folder: Path, model: bytes, config: dict[str, Any], **kind: bool) -> Kind:
    tokenizer = Tokenizer.from_folder(write(folder, model=model, tokenizer_config=config))
    special = {token["content"]: int(number) for number, token in config["added_tokens_decoder"].items()}
    control = {number for name, number in special.items() if name not in GROUNDING} | {0, 1, 2}
    return Kind(tokenizer, between_special_tokens(model, config), frozenset(control), folder, **kind)


def _beyond(model: bytes, names: tuple[str, ...] = (*MARKS, *GROUNDING), **flags: bool) -> dict[str, Any]:
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    return numbered(size, names, **flags)


def internlm2(folder: Path) -> Kind:
    """Chat tokens take over spare pieces of the model, the others come behind it; no space in front of words."""
    model = train(add_dummy_prefix=False, user_defined_symbols=list(SPARE))
    first = sentencepiece.SentencePieceProcessor(model_proto=model).piece_to_id(SPARE[0])
    chat = ("<|im_start|>", "<|im_end|>")
    others = tuple(name for name in (*MARKS, *GROUNDING) if name not in chat)
    decoder = numbered(first, chat) | _beyond(model, others)
    names = {"tokenizer_class": "InternLM2Tokenizer", "bos_token": "<s>", "auto_map": {"AutoTokenizer": ["a.B", None]}}
    return _sentencepiece(folder, model, {**names, "added_tokens_decoder": decoder})


def internlm3(folder: Path) -> Kind:
    model = train()
    config = {"tokenizer_class": "InternLM3Tokenizer", "add_bos_token": True, "bos_token": "<s>"}
    return _sentencepiece(folder, model, {**config, "added_tokens_decoder": _beyond(model)})


def yi(folder: Path) -> Kind:
    """Llama's class in its older way: every text between special tokens starts a word."""
    model = train(control_symbols=["<|sep|>"])
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": False, "bos_token": "<s>"}
    return _sentencepiece(folder, model, {**config, "added_tokens_decoder": _beyond(model)})


def phi3(folder: Path) -> Kind:
    """Llama's class in its newer way; chat tokens swallow the white space behind them."""
    model = train()
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    decoder = numbered(size, TEMPLATE_MARKS, rstrip=True)
    decoder |= numbered(size + len(decoder), (*CONTROL, *GROUNDING))
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>"}
    return _sentencepiece(folder, model, {**config, "added_tokens_decoder": decoder})


def greedy_tokens(folder: Path) -> Kind:
    """Every special token, `<img>` and `</img>` too, swallows white space on both sides."""
    model = train(add_dummy_prefix=False)
    decoder = _beyond(model, lstrip=True, rstrip=True)
    return _sentencepiece(folder, model, {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": decoder})


def unigram(folder: Path) -> Kind:
    model = train("unigram", vocab_size=400)
    return _sentencepiece(folder, model, {"added_tokens_decoder": _beyond(model)}, unigram=True)


def unigram_without_bytes(folder: Path) -> Kind:
    model = train("unigram", vocab_size=200, byte_fallback=False)
    return _sentencepiece(folder, model, {"added_tokens_decoder": _beyond(model)}, lossless=False, unigram=True)


def _byte_level(folder: Path, fast: FastTokenizer, config: dict[str, Any]) -> Kind:
    fast.save(str(write(folder, tokenizer_config=config) / "tokenizer.json"))
    control = frozenset(fast.token_to_id(name) for name in MARKS)
    return Kind(
        Tokenizer.from_folder(folder), lambda text: fast.encode(text, add_special_tokens=False).ids, control, folder
    )


def _qwen_like() -> FastTokenizer:
    fast = FastTokenizer.from_str(small_tokenizer().definition)
    fast.add_special_tokens(list(TEMPLATE_MARKS))
    return fast


def qwen(folder: Path) -> Kind:
    return _byte_level(folder, _qwen_like(), {"tokenizer_class": "Qwen2Tokenizer"})


def llama3(folder: Path) -> Kind:
    """The definition says which token starts a prompt, the config does not."""
    fast, start = _qwen_like(), "<|begin_of_text|>"
    first = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, fast.token_to_id(start))])
    fast.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    return _byte_level(folder, fast, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start})


KINDS: dict[str, Callable[[Path], Kind]] = {
    make.__name__: make
    for make in (qwen, llama3, internlm2, internlm3, yi, phi3, greedy_tokens, unigram, unigram_without_bytes)
}
STARTS = {"internlm2": "<s>", "internlm3": "<s>", "phi3": "<s>", "greedy_tokens": "<s>", "llama3": "<|begin_of_text|>"}
"""Kinds that start a prompt with a token."""
