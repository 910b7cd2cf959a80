"""A worked example agrees with the prompt that is really built: ids, text, tiles, and the sum of its parts."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.inputs.kinds import KINDS
from tests.inputs.vocabulary import small_definition
from tilewise.config import EngineConfig
from tilewise.errors import InvalidMedia
from tilewise.inputs.inspection import Conversation, Run, build_example, count_pieces
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.pieces import ImageSlot, Message, Special, Text
from tilewise.inputs.prepare import Preparer, TemplateOptions
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.templates import TEMPLATES
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
HARMONY_TOKENS = ("<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<s>")
TOKENIZER = Tokenizer(small_definition(*ROLE_TOKENS, *HARMONY_TOKENS))

words = st.sampled_from(["the ", "panda", "\n", " ", "图片", "<|im_end|>", "<s>", "<IMG_CONTEXT>"])
texts = st.lists(words, max_size=8).map("".join)
sizes = st.tuples(st.integers(2, 120), st.integers(2, 120))
SPOKEN = {name: template for name, template in TEMPLATES.items() if name != "deepseek-r1"}
"""Templates whose special tokens the vocabularies here have."""


@st.composite
def conversations(draw) -> Conversation:
    media: list = []
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        pictures = draw(st.lists(sizes, max_size=2))
        videos = draw(st.lists(st.lists(sizes, min_size=1, max_size=3), max_size=1))
        media += [*pictures, *videos]
        if turn:
            messages.append(Message("assistant", draw(texts)))
        messages.append(Message("user", draw(texts), len(pictures), tuple(map(len, videos))))
    return Conversation(messages, media, draw(st.booleans()))


@st.composite
def preparers(draw) -> Preparer:
    smallest = draw(st.integers(1, 3))
    tiling = Tiling(28, smallest, draw(st.integers(smallest, 6)), draw(st.booleans()), draw(st.booleans()))
    start = TOKENIZER.special_id("<s>") if draw(st.booleans()) else None
    spec = InputSpec(SPOKEN[draw(st.sampled_from(sorted(SPOKEN)))], tiling, 4, frozenset(), start)
    return Preparer(spec, TOKENIZER, 10_000, EngineConfig(tile_budget=draw(st.sampled_from(["each", "share"]))))


@pytest.fixture(scope="module")
def kind_of(tmp_path_factory):
    return lambda name: KINDS[name](tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("name", KINDS)
def test_parts_add_up_with_every_kind_of_tokenizer(kind_of, name):
    """Among them those that put a space before the first word, or swallow what stands beside a special token."""
    tokenizer = kind_of(name).tokenizer
    asked = [Message("user", " the <image>  panda\n", 1), Message("assistant", "图片"), Message("user", "Why? ")]
    for template in SPOKEN.values():
        spec = InputSpec(template, Tiling(28), 4, frozenset(), tokenizer.find_id("<s>"))
        prepare = Preparer(spec, tokenizer, 10_000)
        example = build_example(prepare, Conversation(asked, [(56, 28)]))
        request = prepare.chat(asked, [black((56, 28))], SamplingParams())
        assert sum(part.tokens for part in example.parts) == len(request.prompt_ids)


def black(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size)


@settings(max_examples=150)
@given(preparers(), conversations())
def test_an_example_is_the_request_that_would_be_sent(prepare, conversation):
    if prepare.spec.template.thinking is None:
        conversation = dataclasses.replace(conversation, thinking=False)
    example = build_example(prepare, conversation)
    media = [black(item) if isinstance(item, tuple) else list(map(black, item)) for item in conversation.media]
    request = prepare.chat(
        conversation.messages, media, SamplingParams(), TemplateOptions(thinking=conversation.thinking)
    )

    assert sum(part.tokens for part in example.parts) == example.total_tokens == len(request.prompt_ids)
    ids = [id_ for item in example.ids for id_ in ([item.id] * item.count if isinstance(item, Run) else [item])]
    assert tuple(ids) == request.prompt_ids
    start = "" if prepare.spec.start_id is None else "<s>"
    assert "".join(part.text for part in example.parts) == example.prompt == start + request.prompt
    cut = [(image.original_size, image.grid, len(image.tiles)) for image in request.images]
    assert [(picture.size, picture.grid, picture.tiles) for picture in example.pictures] == cut
    assert sum(picture.tokens for picture in example.pictures) == request.num_tiles * 4


def test_parts_have_names_and_turns(make_preparer):
    asked = [Message("user", "See <image>!", 1), Message("assistant", "A panda."), Message("user", "Why?")]
    parts = build_example(make_preparer(), Conversation(asked, [(28, 28)])).parts
    assert [(part.turn, part.role, part.kind) for part in parts] == [
        *((0, "system", kind) for kind in ("header", "text", "closing")),
        *((1, "user", kind) for kind in ("header", "text", "image marks", "image rows", "text", "closing")),
        *((2, "assistant", kind) for kind in ("header", "text", "closing")),
        *((3, "user", kind) for kind in ("header", "text", "closing")),
        (4, "assistant", "opening"),
    ]
    assert [part.tokens for part in parts if part.kind in ("image marks", "image rows")] == [2, 4]


def test_a_token_that_reaches_over_two_texts_counts_where_it_ends():
    (whole,) = TOKENIZER.encode_text("the")
    assert TOKENIZER.token_text(whole) == "the"
    pieces = [Special("<s>"), Text("t"), Text(""), Text("he"), ImageSlot(0), Text("the")]
    assert count_pieces(pieces, [8], TOKENIZER) == [1, 0, 0, 1, 10, 1]


def test_the_start_token_is_not_written_twice():
    """A template may write it itself; then the prompt has it once, and so has the example."""
    spec = InputSpec(TEMPLATES["internvl2_5"], Tiling(28), 4, frozenset(), TOKENIZER.special_id("<|im_start|>"))
    example = build_example(Preparer(spec, TOKENIZER, 500), Conversation([Message("user", "Hi")]))
    assert example.parts[0].kind == "header"
    assert example.total_tokens == sum(part.tokens for part in example.parts)


def test_sizes_have_the_limits_of_pictures(make_preparer):
    prepare = make_preparer(config=EngineConfig(max_image_pixels=100))
    with pytest.raises(InvalidMedia, match="28x28 = 784 pixels, the limit is 100"):
        build_example(prepare, Conversation([Message("user", "a", 1)], [(28, 28)]))


def test_a_prompt_beyond_the_context_can_be_looked_at(make_preparer):
    example = build_example(make_preparer(max_model_len=8), Conversation([Message("user", "a", 1)], [(400, 300)]))
    assert example.total_tokens > 52
