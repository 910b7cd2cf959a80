"""ChatTokenizer: a model's tokenizer and template under the names of transformers, for programs written for those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidRequest, NotSupported
from tilewise.foreign.keywords import ForeignKeyword, no_effect, refused, take_all
from tilewise.ignored import LOG, Ignored
from tilewise.inputs.messages import ParsedMessage, parse_messages
from tilewise.inputs.options import check_ids
from tilewise.inputs.pieces import IMAGE_MARKER, VIDEO_MARKER, ImageSlot, Message, to_string
from tilewise.inputs.request_builder import check_template, ending_of, thinking_of, tool_texts
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.templates import Ending
from tilewise.inputs.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, Tokenizer
from tilewise.inputs.tokenizer_files import token_text
from tilewise.units import to_python
from tilewise.weights.folder import optional_json

_IDS = "Ids and attention_mask are given out, leave it out."
_ENCODE = ("add_special_tokens", "truncation", "max_length", "padding", "return_tensors")
FOREIGN_OPTIONS: dict[str, ForeignKeyword] = {
    "return_offsets_mapping": refused(_IDS, False),
    "return_special_tokens_mask": refused(_IDS, False),
    "return_overflowing_tokens": refused(_IDS, False),
    "return_token_type_ids": refused(_IDS, False),
    "return_length": refused("Take len() of input_ids.", False),
    "return_attention_mask": no_effect("it is always there", True),
    "is_split_into_words": refused("Join the words.", False),
    "stride": refused(_IDS, 0),
    "text_target": refused("Encode it by itself."),
    "pad_to_multiple_of": refused("Nothing is padded."),
    "padding_side": no_effect("nothing is padded", "left", "right"),
    "verbose": no_effect("there is nothing to be said", True),
    "split_special_tokens": refused("Special tokens in texts are meant.", False),
}
"""Options of transformers' tokenizers that are none here."""
_NO_TENSORS = "Lists are given out: make tensors of them, and leave {} out."


class Encoding(dict[str, Any]):
    """A dict of `input_ids` and `attention_mask`, which are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class ChatTokenizer:
    """A model's tokenizer and template under the names of transformers.

    Special tokens in texts are meant, as in `LLM.generate`; in messages they are characters, as in `LLM.chat`.
    """

    is_fast = True
    padding_side = "left"

    def __init__(self, tokenizer: Tokenizer, spec: InputSpec, folder: Path | None = None) -> None:
        """`folder` is that of the tokenizer, for what only its tokenizer_config.json says."""
        self._tokenizer = tokenizer
        self._spec = spec
        self._folder = folder

    def encode(
        self,
        text: str,
        text_pair: None = None,
        add_special_tokens: bool = True,
        *,
        truncation: bool | None = None,
        max_length: int | None = None,
        padding: bool = False,
        return_tensors: None = None,
        **foreign: Any,
    ) -> list[int]:
        """Return the ids of a text, behind the start token if the model has one. Raises InvalidRequest."""
        _check_options(foreign)
        _refuse(text_pair=text_pair, padding=padding, return_tensors=return_tensors)
        if not isinstance(text, str):
            raise InvalidRequest(f"encode takes a text, got {type(text).__name__}: call the tokenizer for several.")
        ids = self._tokenizer.encode_raw(text)
        ids = self._spec.started(ids) if add_special_tokens else ids
        return ids[:max_length] if truncation else ids

    def __call__(self, text: str | Sequence[str], **options: Any) -> Encoding:
        """Encode one text or a list of them, as `encode` does."""
        found = self.encode(text, **options) if isinstance(text, str) else [self.encode(one, **options) for one in text]
        return _encoding(found)

    encode_plus = batch_encode_plus = __call__

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raise NotSupported."""
        where = f" from {self.name_or_path}" if self.name_or_path else ""
        raise NotSupported(f"save_pretrained is not possible. Copy tokenizer.json and tokenizer_config.json{where}.")

    def tokenize(self, text: str) -> list[str]:
        return [self.convert_ids_to_tokens(token) for token in self.encode(text, add_special_tokens=False)]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **_without_effect: Any) -> str:
        """Return the text of an id or of several; special tokens are shown unless skipped, as in transformers."""
        ids = to_python(token_ids)
        ids = [ids] if isinstance(ids, int) else [to_python(token) for token in ids]
        check_ids("token_ids", ids, self._tokenizer)
        return self._tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Any], skip_special_tokens: bool = False, **_options: Any) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: None = None,
        chat_template: None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: None = None,
        return_dict: bool = False,
        **template: Any,
    ) -> Any:
        """Return the prompt of a conversation, or of each of several, in the model's own template: ids, or the text.

        Pictures are `<image>` in the text, and one framed `<IMG_CONTEXT>` in ids, as `LLM.generate` takes both. Of
        further options the templates know `enable_thinking`.
        """
        _refuse(documents=documents, padding=padding, return_tensors=return_tensors)
        check_template(chat_template)
        ending = ending_of(add_generation_prompt, continue_final_message)
        ignored = Ignored()
        thinking = thinking_of(template, ignored)
        LOG.take(ignored.reasons, "apply_chat_template")
        several = not conversation or not isinstance(conversation[0], Mapping)
        most = max_length if truncation else None
        found = [
            self._render(messages, tool_texts(tools), ending, thinking, tokenize)[:most]
            for messages in (conversation if several else [conversation])
        ]
        result = found if several else found[0]
        return _encoding(result) if return_dict and tokenize else result

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[str],
        ending: Ending,
        thinking: bool | None,
        ids: bool,
    ) -> Any:
        counted = list(map(_with_pictures, parse_messages([_marked(message) for message in messages])))
        template = self._spec.template
        pieces = template.render(counted, template.thinks_if(thinking), tools, ending)
        if not ids:
            return to_string(pieces)
        framed = [self._tokenizer.special_id(token) for token in (IMAGE_START, IMAGE_CONTEXT, IMAGE_END)]
        found = self._spec.started(self._tokenizer.encode_pieces(pieces))
        return [token for item in found for token in (framed if isinstance(item, ImageSlot) else [item])]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return the id of a token, None if there is none; a list for a list."""
        find = self._tokenizer.find_id
        return find(tokens) if isinstance(tokens, str) else [find(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        ids = to_python(ids)
        text = self._tokenizer.token_text
        return text(ids) if isinstance(ids, int) else [text(to_python(token)) for token in ids]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Return the text of tokens. Raises InvalidRequest for one that is not in the vocabulary."""
        ids = self.convert_tokens_to_ids(list(tokens))
        if None in ids:
            raise InvalidRequest(f"There is no token {tokens[ids.index(None)]!r:.80} in the vocabulary.")
        return self.decode(ids)

    def get_vocab(self) -> dict[str, int]:
        named = ((self._tokenizer.token_text(token), token) for token in range(len(self)))
        return {text: token for text, token in named if text is not None}

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def __len__(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a turn in the model's template."""
        return self._tokenizer.find_id(self._spec.template.stop_tokens[0])

    @property
    def eos_token(self) -> str | None:
        return self._text(self.eos_token_id)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that stands before every prompt; None for most models."""
        return self._spec.start_id

    @property
    def bos_token(self) -> str | None:
        return self._text(self.bos_token_id)

    @property
    def pad_token_id(self) -> int | None:
        """Id of the first of the usual padding tokens that there is, for programs that pad; nothing is padded here."""
        found = (self._tokenizer.find_id(token) for token in ("<|endoftext|>", "<pad>", "</s>"))
        return next((token for token in found if token is not None), self.eos_token_id)

    @property
    def pad_token(self) -> str | None:
        return self._text(self.pad_token_id)

    @property
    def all_special_ids(self) -> list[int]:
        return sorted(self._tokenizer.special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        return self.convert_ids_to_tokens(self.all_special_ids)  # type: ignore[no-any-return]

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        return dict(self._tokenizer.added_tokens)

    def get_added_vocab(self) -> dict[str, int]:
        return dict(self._tokenizer.added_tokens)

    @property
    def added_tokens_decoder(self) -> dict[int, str]:
        return {token: text for text, token in self._tokenizer.added_tokens.items()}

    @property
    def unk_token(self) -> str | None:
        return token_text(self._config.get("unk_token"))

    @property
    def unk_token_id(self) -> int | None:
        return None if self.unk_token is None else self._tokenizer.find_id(self.unk_token)

    @property
    def additional_special_tokens(self) -> list[str]:
        """The tokens that tokenizer_config.json lists; without a list, all special ones without a name of their own."""
        listed = self._config.get("additional_special_tokens")
        if isinstance(listed, list):
            return [text for text in map(token_text, listed) if text is not None]
        named = (self.bos_token, self.eos_token, self.unk_token, self.pad_token)
        return [token for token in self.all_special_tokens if token not in named]

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        names = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value}

    @property
    def model_max_length(self) -> int:
        """The length that tokenizer_config.json says; 10^30 without it, as in transformers."""
        value = self._config.get("model_max_length")
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else int(1e30)

    @property
    def name_or_path(self) -> str:
        return "" if self._folder is None else str(self._folder)

    @property
    def max_token_id(self) -> int:
        return self._tokenizer.vocab_size - 1

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return {} if self._folder is None else optional_json(self._folder / "tokenizer_config.json")

    @property
    def chat_template(self) -> None:
        """None, as the model's template is built in and no Jinja; `apply_chat_template` renders it."""

    def _text(self, token_id: int | None) -> str | None:
        return None if token_id is None else self._tokenizer.token_text(token_id)


def _check_options(given: Mapping[str, Any]) -> None:
    """Raise UnknownOption for what transformers do not have either, InvalidField for what is refused."""
    ignored = Ignored()
    take_all(given, FOREIGN_OPTIONS, ignored, (*FOREIGN_OPTIONS, *_ENCODE), "The tokenizer")
    LOG.take(ignored.reasons, "tokenizer")


def _refuse(**options: Any) -> None:
    for name, value in options.items():
        if value:
            raise InvalidRequest(f"{name}={value!r:.80} is not possible. {_NO_TENSORS.format(name)}")


def _encoding(ids: Any) -> Encoding:
    several = bool(ids) and isinstance(ids[0], list)
    mask = [[1] * len(one) for one in ids] if several else [1] * len(ids)
    return Encoding(input_ids=ids, attention_mask=mask)


def _marked(message: Any) -> Any:
    """Return a message whose media are markers in its text, since nothing is fetched to render a prompt."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, Sequence) or isinstance(content, str):
        return message
    return {**message, "content": [_marker(part) for part in content]}


def _marker(part: Any) -> Any:
    kinds = [part["type"]] if isinstance(part, Mapping) and "type" in part else part  # else by the key of the medium
    for word, marker in (("image", IMAGE_MARKER), ("video", VIDEO_MARKER)):
        if isinstance(part, Mapping) and any(isinstance(kind, str) and kind.startswith(word) for kind in kinds):
            return {"type": "text", "text": marker}
    return part


def _with_pictures(message: ParsedMessage) -> Message:
    """Return a message in which every `<image>` of a user's text is a place for a picture."""
    pictures = message.text.count(IMAGE_MARKER) if message.role == "user" else 0
    return Message(message.role, message.text, pictures, (), message.calls)
