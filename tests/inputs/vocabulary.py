"""A small byte-level tokenizer with InternVL's added tokens, some of them not special, as Qwen's tool marks are."""

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from tilewise.inputs.tokenizer import Tokenizer

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
GROUNDING = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
NOT_SPECIAL = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_CORPUS = ("the picture shows a red panda on a tree", "<|im_start|>user\n", "图片的内容", "<IMG_CONTEXT><image>")


def small_tokenizer() -> Tokenizer:
    return Tokenizer(small_definition())


def small_definition(*more: str) -> str:
    """Its tokenizer.json, with `more` special tokens behind the others."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator(_CORPUS * 20, trainer)
    fast.add_special_tokens([*CONTROL, *GROUNDING, *more])
    fast.add_tokens([AddedToken(token, normalized=False, special=False) for token in NOT_SPECIAL])
    return str(fast.to_str())


def byte_letters() -> dict[int, str]:
    """The printable stand-in of each byte in byte-level vocabularies."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
