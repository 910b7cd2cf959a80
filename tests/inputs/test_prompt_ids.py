"""A prompt encoded piece by piece has the ids of the whole string, whatever the tokenizer does at borders."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.inputs.kinds import KINDS, MARKS, SPARE, STARTS, Kind
from tests.inputs.vocabulary import GROUNDING
from tests.tiny import SPECS, write_original
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.pieces import ImageSlot, Message, Piece, Special, Text, join_text
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.templates import TEMPLATES
from tilewise.sampling_params import SamplingParams
from tilewise.weights.folder import CheckpointFolder

IN_MODEL = ("<s>", "</s>", "<unk>", "<|sep|>", *SPARE)
NOT_TEXT = (*MARKS, *IN_MODEL, "<tool_call>", "</tool_call>", "<think>", "</think>", "<image>", "<video>")
SNIPPETS = [
    *(" ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\u3000", "▁"),
    *("the", " panda", "red panda", "你好", "图片的内容，", "😀", "👩‍👩‍👧", "e\u0301", "\u0301", "ab", "aaa"),
    *("<", ">", "</", "<0x0A>", "<|im_", "|>", "s>", "[UNUSED_", "1", "345", *GROUNDING),
]
# Python calls four separators white space (U+001C to U+001F) that Unicode does not.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\x1c\x1d\x1e\x1f")
ANY = st.lists(st.sampled_from(SNIPPETS) | CHARACTERS, max_size=12).map("".join)
TEXTS = ANY.filter(lambda text: not any(name in text for name in NOT_TEXT))
SPELLED = st.lists(st.sampled_from([*SNIPPETS[:20], *MARKS, *IN_MODEL]), max_size=8).map("".join)
SOME = settings(max_examples=40)
GREEDY = SamplingParams(temperature=0)
TILES = Tiling(tile_size=28, min_tiles=1, max_tiles=1, thumbnail=False, dynamic=False)
RUN = 3  # tokens of a tile


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


def spelled_out(pieces: list[Piece]) -> str:
    """The whole prompt as a string."""
    picture = f"<img>{'<IMG_CONTEXT>' * RUN}</img>"
    return "".join(
        picture if isinstance(piece, ImageSlot) else piece.token if isinstance(piece, Special) else piece.text
        for piece in pieces
    )


def filled(kind: Kind, ids: list[int | ImageSlot]) -> list[int]:
    start, context, end = map(kind.tokenizer.special_id, ("<img>", "<IMG_CONTEXT>", "</img>"))
    picture = [start, *[context] * RUN, end]
    return [i for item in ids for i in (picture if isinstance(item, ImageSlot) else [item])]


def as_spaces(text: str) -> str:
    """Sentencepiece cannot tell a typed U+2581 from a space."""
    return text.replace("▁", " ")


def preparer_for(kind: Kind, template: str) -> Preparer:
    spec = InputSpec(TEMPLATES[template], TILES, RUN, frozenset())
    return Preparer(spec, kind.tokenizer, max_model_len=10**6)


@settings(max_examples=40)
@given(st.sampled_from([name for name in TEMPLATES if name != "deepseek-r1"]), st.data())  # of its own vocabulary
def test_a_conversation_has_the_ids_of_the_whole_prompt(kind, template, data):
    before, after, answer, second = (data.draw(TEXTS) for _ in range(4))
    assume(not any(name in before + after for name in NOT_TEXT))  # joined, they may spell one
    system = data.draw(st.none() | TEXTS)
    pictures = data.draw(st.integers(0, 2))
    question = Message("user", before + "<image>" * pictures + after, pictures)
    head = [] if system is None else [Message("system", system)]
    pieces = TEMPLATES[template].render([*head, question, Message("assistant", answer), Message("user", second)])
    assume(kind.decides(spelled_out(pieces)))
    assert filled(kind, kind.tokenizer.encode_pieces(pieces)) == kind.reference(spelled_out(pieces))


@SOME
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), marks=st.lists(st.sampled_from(MARKS), max_size=3))
def test_any_pieces_have_the_ids_of_the_whole_prompt(kind, texts, marks):
    """Texts at the start, pictures side by side, special tokens wherever."""
    pieces = join_text([Text(texts[0]), *map(Special, marks), *map(Text, texts[1:2]), ImageSlot(0), *map(Text, texts)])
    joined = [piece.text for piece in pieces if isinstance(piece, Text)]
    assume(not any(name in text for name in NOT_TEXT for text in joined) and kind.decides(spelled_out(pieces)))
    assert filled(kind, kind.tokenizer.encode_pieces(pieces)) == kind.reference(spelled_out(pieces))


@SOME
@given(parts=st.lists(TEXTS | st.sampled_from(MARKS), max_size=6), tail=TEXTS)
def test_a_raw_prompt_has_the_ids_of_the_whole_string(kind, parts, tail):
    prepare = preparer_for(kind, "internvl2_5")
    text = "".join(parts)
    picture = Image.new("RGB", (28, 28))
    if any(name in text for name in ("<img>", "</img>", "<IMG_CONTEXT>")):
        return  # they place pictures
    request = prepare.prompt(f"{text}<image>{tail}", [picture], GREEDY)
    whole = f"{text}<img>{'<IMG_CONTEXT>' * RUN}</img>{tail}"
    assume(kind.decides(whole))
    assert list(request.prompt_ids) == kind.reference(whole)


@settings(max_examples=50)
@given(text=SPELLED | ANY)
def test_no_text_becomes_a_control_token(kind, text):
    ids = kind.tokenizer.encode_text(text)
    assert kind.control.isdisjoint(ids) or (not kind.lossless and set(ids) & kind.control == {0})
    if kind.lossless and not any(mark in text for mark in GROUNDING):
        decoded = kind.tokenizer.decode(ids, skip_special_tokens=False)
        assert as_spaces(decoded).lstrip(" ") == as_spaces(text).lstrip(" ")


def test_an_added_token_takes_the_name_of_the_piece_whose_id_it_has(tmp_path):
    internlm2 = KINDS["internlm2"](tmp_path)
    tokenizer, (im_start,) = internlm2.tokenizer, internlm2.reference("<|im_start|>")
    assert tokenizer.encode_raw("<|im_start|>") == [im_start]
    assert tokenizer.decode([im_start], skip_special_tokens=False) == "<|im_start|>"
    assert tokenizer.find_id(SPARE[0]) is None
    assert im_start not in tokenizer.encode_raw(SPARE[0])


@pytest.mark.parametrize("name", KINDS)
def test_the_start_token_stands_once(tmp_path, name):
    kind = KINDS[name](write_original(tmp_path, SPECS["qwen2-300m"]))
    if name not in ("qwen", "llama3"):
        (tmp_path / "tokenizer.json").unlink()
        kind = KINDS[name](tmp_path)
    prepare = Preparer(InputSpec.of(CheckpointFolder.open(tmp_path), kind.tokenizer), kind.tokenizer, 4096)
    start = kind.tokenizer.find_id(STARTS[name]) if name in STARTS else None
    assert prepare.spec.start_id == start
    written = STARTS.get(name, "") + "the panda"
    for ids in (
        prepare.prompt("the panda", [], GREEDY).prompt_ids,
        prepare.prompt(written, [], GREEDY).prompt_ids,
        prepare.chat([Message("user", "the panda")], [], GREEDY).prompt_ids,
    ):
        assert [i for i in ids if i == start] == ([] if start is None else [ids[0]])
    assert list(prepare.prompt(written, [], GREEDY).prompt_ids) == kind.reference(written)
