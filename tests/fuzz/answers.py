"""Targets: what a model writes, and what servers elsewhere answer: tokens, parts of answers, boxes, events."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import get_args

from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.target import of_bytes, of_values
from tests.inputs.kinds import KINDS, Kind
from tests.outputs.cutting import ANY_CUT, cut
from tests.outputs.reading import split_parts
from tilewise.inputs.tokenizer import PieceStream
from tilewise.inputs.tool_text import ToolFormName
from tilewise.outputs.boxes import draw_boxes, read_boxes, without_marks
from tilewise.outputs.group import Detokenizer
from tilewise.outputs.parts import AnswerParts, Calls, PartsRule, PartsSplitter
from tilewise.sampling_params import SamplingParams
from tilewise.server.exchange import data_event
from tilewise.sse import EventReader, read_events
from tilewise.types import SampledToken

_WORDS = [
    '<tool_call>\n{"name": "look", "arguments": {"where": "left"}}\n</tool_call>',
    *("<tool_call>", "</tool_call>", "</tool", "<tool_", "<think>", "</think>", "<|action_start|><|plugin|>"),
    *("<|action_end|>", "<|start|>assistant", "<|channel|>analysis", "<|channel|>final", "<|message|>", "<|end|>"),
    *(" to=functions.look", "<|call|>", "<|return|>", "<|constrain|>json", "\n", " ", "Hm.", "<", "图", "|>"),
    *('{"name": "look"', ', "arguments": ', ', "parameters": ', '{"a": ', '"', "\\", "}", "]}", "{", "1", "[", "NaN"),
    *('"</tool_call>"', '{"arguments": {"b": [1, 2]}, "name": "other"}', '"\\ud800"', '"\\u0000"', "\x00", "1e999"),
    *('[{"name": "a", "arguments": ', '{"name": "\\ud83d\\ude00\\udc00", "arguments": {}}', "[" * 500, "9" * 50),
    *("<ref>a cat</ref>", "<box>", "[[0, 0, 250, 500]]", "</box>", "<box>[[1, 2, 3, 1000.5]]</box>", "[[9,9,9,9]]"),
]
TEXTS = st.lists(st.sampled_from(_WORDS) | st.text(st.characters(codec="utf-8"), max_size=3), max_size=14).map("".join)
RULES = st.builds(
    PartsRule,
    reasoning=st.booleans(),
    opened=st.booleans(),
    calls=st.sampled_from(get_args(Calls)),
    name=st.just("look"),
    parallel=st.booleans(),
    form=st.sampled_from(get_args(ToolFormName)),
)


@of_values(st.tuples(TEXTS, ANY_CUT, RULES), examples=150)
def answer_parts(value: tuple[str, list[int], PartsRule]) -> None:
    """Any answer has parts, the same ones however it is cut, and each of them can be sent."""
    text, lengths, rule = value
    parts, splitter = AnswerParts(), PartsSplitter(rule)
    for piece in cut(text, lengths):
        parts.add(splitter.add(piece))
    parts.add(splitter.finish())
    assert parts == split_parts(text, rule)
    calls = [{"name": call.name, "arguments": call.arguments} for call in parts.calls]
    data_event({"content": parts.content, "reasoning": parts.reasoning, "calls": calls})


@of_values(TEXTS | st.text(st.sampled_from("<>/[]refbox0123456789., "), max_size=80))
def boxes(text: str) -> None:
    """The boxes of any answer lie in the picture, and can be drawn."""
    found = read_boxes(text)
    without_marks(text)
    for box in found:
        left, top, right, bottom = box.pixels((40, 30))
        assert 0 <= left <= right <= 40
        assert 0 <= top <= bottom <= 30
    draw_boxes(Image.new("L", (40, 30)), found[:8])


_EVENTS = [b"data: a\n\n", b": ping\r\n\r\ndata:b\r\ndata: c\r\n\r\n", b"event: x\rdata: {}\r\rdata: [DONE]\n\n"]


@of_bytes(lambda: _EVENTS)
def event_stream(data: bytes) -> None:
    """Events of a response are the same however its bytes are cut."""
    single = [data[place : place + 1] for place in range(len(data))]
    assert list(read_events(single)) == list(EventReader().feed(data))


_STREAMED = ("qwen", "internlm2", "yi", "phi3", "unigram", "unigram_without_bytes")


@cache
def kind(name: str) -> Kind:
    """Return a small tokenizer of a kind that checkpoints bring."""
    return KINDS[name](Path(mkdtemp(prefix=f"tilewise-fuzz-{name}-")))


_IDS = st.lists(st.integers(0, 700) | st.integers(3, 258), max_size=14)
_STOPS = st.lists(st.sampled_from(["a", "the", " ", "\n", "\ufffd", "图", "e pi"]), max_size=2, unique=True)


@of_values(st.tuples(st.sampled_from(_STREAMED), _IDS, _STOPS), examples=80)
def token_stream(value: tuple[str, list[int], list[str]]) -> None:
    """Text token by token is the text of all tokens; with stop strings it ends before the first of them."""
    name, ids, stops = value
    tokenizer = kind(name).tokenizer
    ids = [number % tokenizer.vocab_size for number in ids]
    stream = tokenizer.stream()
    text = "".join(map(stream.add, ids)) + (stream.end() if isinstance(stream, PieceStream) else "")
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    assert whole.startswith(text)
    assert text == whole or whole.endswith("\ufffd")
    sampling = SamplingParams(stop=stops, max_tokens=max(1, len(ids)), skip_special_tokens=False)
    answer, shown = Detokenizer(tokenizer, sampling), ""
    for place, number in enumerate(ids):
        reason = "length" if place == len(ids) - 1 else None
        shown += answer.add(SampledToken(number), reason, None)
        if answer.finished:
            break
    assert shown == answer.output.text
    assert whole.startswith(shown)
    if stops:
        found = [place for stop in stops if (place := whole.find(stop)) >= 0]
        assert not found or len(shown) <= min(found)


_TYPED = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=4)
    | st.sampled_from(
        [
            *("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<s>", "</s>", "<unk>", "<0x0A>"),
            *("<ref>", "<|end|>", "<|user|>", "[UNUSED_TOKEN_1]", "▁", " ", "\n", "<|begin_of_text|>", "<|im_"),
            *("end|>", "\u00a0"),
        ]
    ),
    max_size=8,
).map("".join)


@of_values(st.tuples(st.sampled_from(sorted(KINDS)), _TYPED), examples=80)
def typed_text(value: tuple[str, str]) -> None:
    """No text of a user becomes a control token; where a vocabulary has all characters, it is read back as it was."""
    name, text = value
    found = kind(name)
    ids = found.tokenizer.encode_text(text)
    unknown = set() if found.lossless else {0}
    assert not found.control.intersection(ids) - unknown
    if found.lossless and name in ("qwen", "llama3"):
        assert found.tokenizer.decode(ids, skip_special_tokens=False) in (text, unicodedata.normalize("NFC", text))
