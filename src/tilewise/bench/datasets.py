"""Data sets by name, and files of requests: JSON lines of our own and of vLLM's form, and ShareGPT's conversations."""

from __future__ import annotations

import itertools
import json
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewise.bench.dataset_options import DatasetChoice, RandomOptions
from tilewise.bench.random_requests import RandomText, with_media
from tilewise.bench.requests import Media, MediaKind, SampleRequest
from tilewise.bench.tokenizer import BenchTokenizer
from tilewise.errors import InvalidConfig, InvalidMedia, InvalidRequest, did_you_mean
from tilewise.inputs.media.images import open_image

COLUMNS = ("prompt", "messages", "output_tokens")
_FILES: dict[str, MediaKind] = {"image_files": "image", "video_files": "video"}
MEDIA_COLUMNS = (*COLUMNS, *_FILES)
_REMOTE = ("http://", "https://", "data:")
SHORTEST, LONGEST_PROMPT, LONGEST = 4, 1024, 2048
"""vLLM's limits for ShareGPT in tokens: least of a prompt and of an answer, most of a prompt, most of both together.
Conversations beyond them are passed over."""


class InvalidData(InvalidRequest):
    """A file of requests cannot be read, or not be understood."""


def custom(
    path: Path, tokenizer: BenchTokenizer | None, output: int | None, media: bool = False
) -> Iterator[SampleRequest]:
    """Read a file of one JSON object a line. Raises InvalidData.

    A line has `prompt` or `messages`, and `output_tokens` where `output` does not say; with `media` also `image_files`
    and `video_files`, paths from the file's own folder, or URLs.
    """
    allowed = MEDIA_COLUMNS if media else COLUMNS
    for number, line in enumerate(_text(path).split("\n"), 1):
        where = f"{path}, line {number}"
        if line.strip():
            entry = _entry(line, allowed, where)
            prompt, messages = _asked(entry, where)
            found = tuple(_files(entry, path.parent, where)) if media else ()
            tokens = len(tokenizer.encode(prompt)) if tokenizer else None
            wanted = output if output is not None else _whole(entry.get("output_tokens"), where)
            yield SampleRequest(prompt, tokens, wanted, found, messages)


def sharegpt(path: Path, tokenizer: BenchTokenizer | None, output: int | None) -> Iterator[SampleRequest]:
    """Read ShareGPT's file: the first question of each conversation, and as many tokens as its first answer has.

    Raises InvalidData.
    """
    if tokenizer is None:
        raise InvalidData("sharegpt needs a tokenizer, since the length of its answers is counted in tokens.")
    for number, entry in enumerate(_conversations(path), 1):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise InvalidData(f"{path}, entry {number} has no list 'conversations': is it a file of ShareGPT?")
        if len(turns) < 2:
            continue
        try:
            prompt, answer = (str(turn["value"]) for turn in turns[:2])
        except (TypeError, KeyError):
            raise InvalidData(f"{path}, entry {number}: a turn has no 'value'.") from None
        asked, wanted = len(tokenizer.encode(prompt)), output if output is not None else len(tokenizer.encode(answer))
        least = SHORTEST if output is None else 1
        if SHORTEST <= asked <= LONGEST_PROMPT and least <= wanted <= LONGEST - asked:
            yield SampleRequest(prompt, asked, wanted)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidData(f"--dataset-path {path} cannot be read: {why}") from None


def _conversations(path: Path) -> list[Any]:
    text = _text(path)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidData(f"{path} is not JSON: {error}") from None
    if not isinstance(found, list):
        raise InvalidData(f"{path} holds no list of conversations: is it a file of ShareGPT?")
    return found


def _entry(line: str, allowed: tuple[str, ...], where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InvalidData(f"{where} is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise InvalidData(f'{where} must be an object such as {{"prompt": "Hello"}}, got {line:.60}')
    for column in entry:
        if column not in allowed:
            hint = did_you_mean(column, allowed)
            raise InvalidData(f"{where} has an unknown column {column!r}; there are {', '.join(allowed)}.{hint}")
    return entry


def _asked(entry: dict[str, Any], where: str) -> tuple[str, tuple[dict[str, Any], ...] | None]:
    prompt, messages = entry.get("prompt"), entry.get("messages")
    if (prompt is None) == (messages is None):
        raise InvalidData(f"{where} needs either 'prompt' or 'messages'.")
    if messages is None:
        if not isinstance(prompt, str):
            raise InvalidData(f"{where}: 'prompt' must be a text, got {prompt!r:.60}.")
        return prompt, None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InvalidData(f"{where}: 'messages' must be a list of objects with role and content.")
    texts = [message.get("content") for message in messages]
    return "\n".join(text for text in texts if isinstance(text, str)), tuple(messages)


def _whole(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise InvalidData(f"{where}: 'output_tokens' must be a whole number above 0, got {value!r}.")
    return value


def _files(entry: dict[str, Any], folder: Path, where: str) -> Iterator[Media]:
    for column, kind in _FILES.items():
        names = entry.get(column) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidData(f"{where}: {column!r} must be a list of paths, got {names!r:.60}.")
        yield from (_media(name, folder, kind, where) for name in names)
    if any(map(entry.get, _FILES)) and entry.get("messages") is not None:
        raise InvalidData(f"{where}: media of 'messages' belong into them, and files beside 'prompt'.")


def _media(name: str, folder: Path, kind: MediaKind, where: str) -> Media:
    if name.startswith(_REMOTE):
        return Media(kind, name)
    path = folder / name.removeprefix("file://")
    try:
        if kind == "image":
            open_image(path)  # a broken picture is refused now, not by the server in the middle of a run
        content = path.read_bytes()
    except (InvalidMedia, OSError) as error:
        raise InvalidData(f"{where}: {error}") from None
    fallback = "image/jpeg" if kind == "image" else "video/mp4"
    return Media.of(kind, content, mimetypes.guess_type(path.name)[0] or fallback)


@dataclass(frozen=True)
class DatasetSource:
    drawn: RandomOptions
    choice: DatasetChoice

    def requests(self, tokenizer: BenchTokenizer | None) -> list[SampleRequest]:
        """Make the requests. Raises InvalidConfig, or InvalidData with the line of a file that is wrong."""
        drawn, name, path = self.drawn, self.choice.dataset_name, self.choice.dataset_path
        if path is not None:
            return self._chosen(list(self._read(path, tokenizer)))
        if tokenizer is None:
            raise InvalidConfig(f"--dataset-name {name} needs a tokenizer: leave out --skip-tokenizer-init.")
        text = RandomText(tokenizer, drawn.seed)
        if name == "prefix_repetition":
            return list(text.repeated(drawn, self.choice))
        made = text.requests(drawn)
        return list(with_media(list(made), drawn, text.generator) if name == "random-mm" else made)

    def _read(self, path: Path, tokenizer: BenchTokenizer | None) -> Iterator[SampleRequest]:
        name, wanted = self.choice.dataset_name, self.drawn.output_len
        wanted = self.choice.file_output_len if wanted is None else wanted
        if name == "sharegpt":
            return sharegpt(path, tokenizer, wanted)
        return custom(path, tokenizer, wanted, media=name == "custom_mm")

    def _chosen(self, found: list[SampleRequest]) -> list[SampleRequest]:
        if not found:
            raise InvalidData(f"{self.choice.dataset_path} has no request that can be sent.")
        if not self.choice.disable_shuffle:
            found = [found[place] for place in np.random.default_rng(self.drawn.seed).permutation(len(found))]
        if self.choice.no_oversample:
            return found[: self.drawn.num_prompts]
        return list(itertools.islice(itertools.cycle(found), self.drawn.num_prompts))
