"""Requests from messages and raw prompts: spans, digests, budgets, and prompts that do not fit."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tilewise.config import EngineConfig
from tilewise.errors import InvalidMedia, InvalidRequest, TooLong, UnknownOption
from tilewise.inputs.context import MAX_CHARACTERS
from tilewise.inputs.media.tiling import LimitedPicture, tile_digest
from tilewise.inputs.messages import parse_messages
from tilewise.inputs.pieces import MediaPlace, Message, Special, Text, join_text
from tilewise.inputs.prepare import TemplateOptions
from tilewise.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0)
# Sizes whose grids at 28 pixels a tile are known: tiles with the thumbnail.
ONE, THREE, FIVE = (28, 28), (56, 28), (56, 56)


def picture(size=ONE, seed=0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def preparer(make_preparer):
    return make_preparer()


@pytest.fixture
def image_ids(tokenizer):
    return {name: tokenizer.special_id(name) for name in ("<img>", "</img>", "<IMG_CONTEXT>")}


def ask(preparer, text, *pictures, **options):
    return preparer.chat([Message("user", text, len(pictures))], pictures, GREEDY, TemplateOptions(**options))


def test_text_alone(preparer, tokenizer):
    request = ask(preparer, "Hi")
    assert request.images == ()
    assert request.prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(request.prompt_ids, skip_special_tokens=False) == request.prompt


def test_the_span_of_a_picture_is_its_tiles_times_tokens(preparer, image_ids):
    request = ask(preparer, "See <image>!", picture(THREE))
    (image,) = request.images
    assert (image.grid, image.original_size, len(image.tiles)) == ((2, 1), THREE, 3)
    span = request.prompt_ids[image.start - 1 : image.start + 13]
    assert span == (image_ids["<img>"], *[image_ids["<IMG_CONTEXT>"]] * 12, image_ids["</img>"])
    assert request.prompt_ids.count(image_ids["<IMG_CONTEXT>"]) == 12


def test_pictures_keep_their_order(preparer):
    pictures = [picture(ONE, 1), picture(THREE, 2), picture(FIVE, 3)]
    request = ask(preparer, "<image> a <image> b <image>", *pictures)
    assert [image.original_size for image in request.images] == [ONE, THREE, FIVE]
    starts = [image.start for image in request.images]
    assert starts == sorted(starts)
    assert request.num_tiles == 9


def test_pictures_and_videos_reach_their_markers(preparer):
    frames = [picture(seed=1), picture(seed=2)]
    still = picture(THREE, 3)
    message = Message("user", "<video> then <image>", 1, (2,))
    request = preparer.chat([message], [still, frames], GREEDY)
    first, second, third = request.images
    assert [image.tiles[0].digest for image in (first, second)] == [tile_digest(np.asarray(f)) for f in frames]
    assert third.original_size == THREE
    assert first.start < second.start < third.start


def test_frames_are_one_tile_whatever_their_size(preparer):
    request = preparer.chat([Message("user", "", 0, (1,))], [[picture((500, 100))]], GREEDY)
    assert request.num_tiles == 1


def test_requests_are_numbered_and_carry_sampling_and_end_tokens(preparer, tokenizer):
    one, two = ask(preparer, "a"), ask(preparer, "b")
    assert one.id != two.id
    assert one.sampling == GREEDY
    assert one.stop_ids == {tokenizer.special_id("<|im_end|>")}


def test_end_tokens_stay_with_requests_that_ignore_them(preparer):
    request = preparer.chat([Message("user", "a")], [], SamplingParams(ignore_eos=True))
    assert request.stop_ids == ask(preparer, "a").stop_ids  # min_tokens holds them back all the same


def test_processor_options_reach_the_tiling(preparer):
    assert ask(preparer, "a", picture(FIVE), processor={"max_dynamic_patch": 1}).num_tiles == 1
    assert ask(preparer, "a", picture(FIVE), processor={"use_thumbnail": False}).num_tiles == 4
    with pytest.raises(UnknownOption, match="Did you mean use_thumbnail"):
        ask(preparer, "a", picture(), processor={"use_thumbnails": False})


def test_thinking_reaches_the_template(preparer):
    assert "<think>" in ask(preparer, "a", thinking=True).prompt
    assert "<think>" not in ask(preparer, "a").prompt


def test_each_picture_has_the_whole_budget_by_default(preparer):
    assert ask(preparer, "a", *[picture((400, 300))] * 3).num_tiles == 39


@pytest.mark.parametrize(("pictures", "tiles"), [(1, 13), (2, 7), (6, 3), (13, 1)])
def test_shared_budget_is_split_over_the_pictures(make_preparer, pictures, tiles):
    preparer = make_preparer(config=EngineConfig(tile_budget="share"))
    request = ask(preparer, "a", *[picture((600, 300) if pictures == 6 else (400, 300), 1)] * pictures)
    assert all(len(image.tiles) <= max(1, 12 // pictures) + 1 for image in request.images)
    assert len(request.images[0].tiles) == tiles


def test_shared_budget_does_not_count_video_frames(make_preparer):
    preparer = make_preparer(config=EngineConfig(tile_budget="share"))
    message = Message("user", "", 1, (4,))
    request = preparer.chat([message], [picture((400, 300)), [picture()] * 4], GREEDY)
    assert [len(image.tiles) for image in request.images] == [13, 1, 1, 1, 1]


def test_orientation_is_followed_only_when_the_engine_says_so(make_preparer):
    turned = picture(THREE)
    turned.getexif()[0x0112] = 6
    sizes = [
        ask(make_preparer(config=EngineConfig(exif_orientation=follow)), "a", turned).images[0].original_size
        for follow in (False, True)
    ]
    assert sizes == [THREE, THREE[::-1]]


def test_limits_hold_for_pictures_in_memory(make_preparer):
    preparer = make_preparer(config=EngineConfig(max_image_pixels=100))
    with pytest.raises(InvalidMedia, match="28x28 = 784 pixels, the limit is 100"):
        ask(preparer, "a", picture())


def test_a_picture_in_memory_that_turns_out_damaged_is_refused(preparer):
    buffer = io.BytesIO()
    picture((64, 64)).save(buffer, "PNG")
    lazy = Image.open(io.BytesIO(buffer.getvalue()[:3000]))
    with pytest.raises(InvalidMedia):
        ask(preparer, "a", lazy)


def digests(request):
    return [tile.digest for image in request.images for tile in image.tiles]


def test_equal_pixels_have_equal_digests_in_any_request(make_preparer):
    assert digests(ask(make_preparer(), "a", picture(FIVE))) == digests(ask(make_preparer(), "b", picture(FIVE)))


def test_other_pixels_have_other_digests(preparer):
    changed = picture(FIVE)
    changed.putpixel((0, 0), (1, 2, 3))
    before, after = digests(ask(preparer, "a", picture(FIVE))), digests(ask(preparer, "a", changed))
    assert before[0] != after[0]
    assert before[1:4] == after[1:4]
    assert before[4] != after[4]


def test_digests_are_of_the_tile_whatever_the_mode(preparer):
    grey = picture(ONE).convert("L")
    assert digests(ask(preparer, "a", grey)) == digests(ask(preparer, "a", grey.convert("RGB")))


def test_same_bytes_in_another_shape_have_another_digest():
    flat = np.arange(48, dtype=np.uint8)
    shapes = [(4, 4, 3), (2, 8, 3), (8, 2, 3), (16, 1, 3), (48,)]
    assert len({tile_digest(flat.reshape(shape)) for shape in shapes}) == len(shapes)


@settings(max_examples=100)
@given(data=st.binary(min_size=12, max_size=12), place=st.integers(0, 11))
def test_digest_changes_with_every_byte(data, place):
    pixels = np.frombuffer(data, np.uint8).reshape(2, 2, 3)
    other = pixels.copy()
    other.reshape(-1)[place] ^= 1
    assert tile_digest(pixels) == tile_digest(pixels.copy())
    assert tile_digest(pixels) != tile_digest(other)
    assert len(tile_digest(pixels)) == 16


def test_digest_does_not_depend_on_memory_layout():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert tile_digest(pixels) == tile_digest(np.asfortranarray(pixels))


def test_too_long_names_tokens_tiles_limit_and_remedy(make_preparer):
    fits = ask(make_preparer(), "a", picture(FIVE))
    total, others = len(fits.prompt_ids), len(fits.prompt_ids) - 20
    with pytest.raises(TooLong) as caught:
        ask(make_preparer(max_model_len=total), "a", picture(FIVE))
    assert str(caught.value) == (
        f"The prompt has {total} tokens (5 tiles of 4 tokens and {others} others), the context holds {total} with at "
        "least one for the answer: use fewer pictures, a smaller max_dynamic_patch, or a larger max_model_len."
    )
    assert len(ask(make_preparer(max_model_len=total + 1), "a", picture(FIVE)).prompt_ids) == total


@pytest.mark.parametrize(
    "prompt",
    ["<image>\nWhat?", "<IMG_CONTEXT>\nWhat?", "<img><IMG_CONTEXT></img>\nWhat?", "What?"],
)
def test_markers_of_raw_prompts(preparer, tokenizer, image_ids, prompt):
    request = preparer.prompt(prompt, [picture(THREE)], GREEDY)
    expected = [image_ids["<img>"], *[image_ids["<IMG_CONTEXT>"]] * 12, image_ids["</img>"]]
    assert list(request.prompt_ids) == [*expected, *tokenizer.encode_raw("\nWhat?")]
    assert request.images[0].start == 1
    assert request.prompt == prompt


def test_mixed_markers_of_raw_prompts_take_pictures_in_order(preparer):
    request = preparer.prompt("<image> and <IMG_CONTEXT>", [picture(ONE), picture(THREE)], GREEDY)
    assert [image.original_size for image in request.images] == [ONE, THREE]


def test_special_tokens_of_raw_prompts_are_meant(preparer, tokenizer):
    ids = preparer.prompt("<|im_start|>user\nHi<|im_end|>", [], GREEDY).prompt_ids
    assert ids[0] == tokenizer.special_id("<|im_start|>")
    assert ids[-1] == tokenizer.special_id("<|im_end|>")


@pytest.mark.parametrize("frames", [1, 3])
def test_video_markers_of_raw_prompts(preparer, frames):
    marked = preparer.prompt("<image>\n<video>\nWhy?", [picture(THREE), [picture()] * frames], GREEDY)
    plain = preparer.prompt("Why?", [picture(THREE), [picture()] * frames], GREEDY)
    assert marked.prompt_ids == plain.prompt_ids
    assert [len(image.tiles) for image in marked.images] == [3, *[1] * frames]


@pytest.mark.parametrize(("markers", "pictures"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("marker", ["<image>", "<IMG_CONTEXT>"])
def test_raw_prompts_with_wrong_numbers_of_markers_are_refused(preparer, markers, pictures, marker):
    with pytest.raises(InvalidRequest, match=f"{markers} <image> markers for {pictures} pictures"):
        preparer.prompt(f"What is {marker * markers}?", [picture()] * pictures, GREEDY)


def test_markers_without_media_are_text_and_places_are_refused(preparer, tokenizer):
    prompt = "How is an <image> or a <video> tag written?"
    assert tokenizer.decode(preparer.prompt(prompt, [], GREEDY).prompt_ids, skip_special_tokens=False) == prompt
    with pytest.raises(InvalidRequest, match="has 1 <IMG_CONTEXT> and no pictures came with it"):
        preparer.prompt("What is <IMG_CONTEXT>?", [], GREEDY)


def test_prompts_of_ids(preparer, image_ids):
    context = image_ids["<IMG_CONTEXT>"]
    request = preparer.prompt([65, context, 66], [picture(ONE)], GREEDY)
    assert request.prompt_ids == (65, image_ids["<img>"], *[context] * 4, image_ids["</img>"], 66)
    assert request.prompt is None


def test_prompts_of_ids_that_hold_the_frame_of_a_picture_do_not_get_a_second_one(preparer, image_ids):
    """As in raw text, where `<img><IMG_CONTEXT></img>` is one place."""
    start, context, end = (image_ids[name] for name in ("<img>", "<IMG_CONTEXT>", "</img>"))
    request = preparer.prompt([start, context, end, 66], [picture(ONE)], GREEDY)
    assert request.prompt_ids == (start, *[context] * 4, end, 66)


def test_prompts_of_ids_without_a_place_put_pictures_first(preparer, image_ids):
    request = preparer.prompt([65, 66], [picture(ONE)], GREEDY)
    assert request.images[0].start == 1
    assert request.prompt_ids[-2:] == (65, 66)


def test_prompts_of_ids_cannot_hold_image_tokens_without_a_picture(preparer, image_ids):
    with pytest.raises(InvalidRequest, match="has places for 1 pictures and 0 came with it"):
        preparer.prompt([65, image_ids["<IMG_CONTEXT>"]], [], GREEDY)


@pytest.mark.parametrize("token", [-1, 1_000_000])
def test_ids_outside_the_vocabulary_are_refused(preparer, token):
    with pytest.raises(InvalidRequest, match=str(token)):
        preparer.prompt([65, token], [], GREEDY)


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(preparer, prompt):
    with pytest.raises(InvalidRequest, match="The prompt is empty"):
        preparer.prompt(prompt, [], GREEDY)


def test_a_prompt_cut_to_its_end(preparer, make_preparer):
    whole = ask(preparer, "Hi").prompt_ids
    assert ask(preparer, "Hi", keep_last=3).prompt_ids == whole[-3:]
    assert ask(preparer, "Hi", keep_last=4096).prompt_ids == whole
    small = make_preparer(max_model_len=20)
    sampling = SamplingParams(max_tokens=5)
    assert (
        small.prompt("a b " * 50, (), sampling, keep_last=-1).prompt_ids
        == (preparer.prompt("a b " * 50, (), sampling).prompt_ids[-15:])
    )
    with pytest.raises(InvalidRequest, match="must be -1 or from 1 to 4096, got 0"):
        ask(preparer, "Hi", keep_last=0)
    with pytest.raises(InvalidRequest, match="would cut pictures"):
        ask(preparer, "Hi", picture(), keep_last=100)


def test_a_text_without_its_start_token(tokenizer, make_preparer):
    preparer = make_preparer()
    started = replace(preparer, spec=replace(preparer.spec, start_id=tokenizer.special_id("<|endoftext|>")))
    whole = started.prompt("Hi", (), GREEDY).prompt_ids
    assert started.prompt("Hi", (), GREEDY, start=False).prompt_ids == whole[1:]


def test_tools_and_endings_reach_the_template(preparer):
    turns = [Message("user", "Hi"), Message("assistant", "It is")]
    request = preparer.chat(turns, [], GREEDY, TemplateOptions(tools=['{"a": 1}'], ending="continue"))
    assert '<tools>\n{"a": 1}\n</tools>' in request.prompt
    assert request.prompt.endswith("<|im_start|>assistant\nIt is")


@pytest.mark.parametrize("asked", ["server", "request"])
def test_the_order_of_parts_can_be_asked_for(preparer, asked):
    turns = [Message("user", "A\nB", 1, parts=("A", MediaPlace("image"), "B"))]
    first = preparer.chat(turns, [picture()], GREEDY)
    assert first.prompt.endswith("user\n<image>\nA\nB<|im_end|>\n<|im_start|>assistant\n")
    config = replace(preparer.config, interleave_mm_strings=asked == "server")
    processor = {"interleave_mm_strings": True} if asked == "request" else {}
    kept = replace(preparer, config=config).chat(turns, [picture()], GREEDY, TemplateOptions(processor=processor))
    assert kept.prompt.endswith("user\nA\n<image>\nB<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(InvalidRequest, match="interleave_mm_strings must be true or false"):
        preparer.chat(turns, [picture()], GREEDY, TemplateOptions(processor={"interleave_mm_strings": 1}))


def test_a_prompt_that_is_too_long_has_its_numbers(make_preparer):
    with pytest.raises(TooLong) as caught:
        make_preparer(max_model_len=4).prompt("a b c d e f", (), GREEDY)
    assert (caught.value.limit, caught.value.output_tokens) == (4, GREEDY.max_tokens)
    assert str(caught.value).startswith(f"The prompt has {caught.value.prompt_tokens} tokens")


def film_of(frames: int) -> list[Image.Image]:
    return [picture(ONE, seed) for seed in range(frames)]


def ask_of_films(preparer, lengths: list[int]):
    media = [film_of(frames) for frames in lengths]
    return preparer.chat([Message("user", "Why?", 0, tuple(lengths))], media, GREEDY)


@pytest.mark.parametrize("lengths", [[12], [30], [12, 12], [5, 20], [3, 3, 11]])
def test_videos_that_do_not_fit_say_how_many_of_their_frames_would(make_preparer, lengths):
    """Exactly so many, and not one more: taking the advice works."""
    preparer = make_preparer(max_model_len=230)
    with pytest.raises(TooLong) as caught:
        ask_of_films(preparer, lengths)
    advised = int(re.search(r"ask for num_frames=(\d+)", str(caught.value))[1])
    assert f"Of {sum(lengths)} frames of {len(lengths)} video(s), {advised} of " in str(caught.value)
    ask_of_films(preparer, [min(frames, advised) for frames in lengths])
    with pytest.raises(TooLong):
        ask_of_films(preparer, [min(frames, advised + 1) for frames in lengths])


def test_a_prompt_that_is_too_long_without_frames_says_so(make_preparer):
    with pytest.raises(TooLong, match=r"Of 3 frames of 1 video\(s\), none would fit"):
        ask_of_films(make_preparer(max_model_len=30), [3])


def test_pictures_alone_get_no_advice_about_frames(make_preparer):
    with pytest.raises(TooLong) as caught:
        ask(make_preparer(max_model_len=30), "Hi", picture(FIVE))
    assert "frames" not in str(caught.value)


def test_a_limited_picture_is_cut_into_fewer_tiles_than_its_neighbours(preparer):
    request = ask(preparer, "Hi", picture(FIVE), LimitedPicture(picture(FIVE), 1), LimitedPicture(picture(FIVE), 99))
    assert [len(image.tiles) for image in request.images] == [5, 1, 5]


def test_the_limit_holds_beside_a_request_s_own(preparer):
    both = [LimitedPicture(picture(FIVE), 2), LimitedPicture(picture(FIVE), 4)]
    request = ask(
        preparer, "Hi", *both, processor={"max_dynamic_patch": 3, "min_dynamic_patch": 2, "use_thumbnail": False}
    )
    assert all(len(image.tiles) <= 3 for image in request.images)
    assert len(request.images[0].tiles) == 2


def test_ids_of_a_result_stand_for_its_pictures(preparer, image_ids):
    """Each place has as many image tokens as rows, which a second request with the same pictures fills again."""
    pictures = [picture(ONE), picture(THREE)]
    first = preparer.prompt("a <image> b <image> c", pictures, GREEDY)
    again = preparer.prompt(first.prompt_ids, pictures, GREEDY)
    assert (again.prompt_ids, again.images) == (first.prompt_ids, first.images)
    rows = [4 * len(image.tiles) for image in first.images]
    with pytest.raises(
        InvalidRequest, match=f"{rows[0]} <IMG_CONTEXT> in a row stand for picture 1, which fills {rows[1]}"
    ):
        preparer.prompt(first.prompt_ids, pictures[::-1], GREEDY)
    with pytest.raises(InvalidRequest, match="places for 2 pictures and 1 came"):
        preparer.prompt(first.prompt_ids, pictures[:1], GREEDY)


def test_ids_of_numpy_and_truncation_by_sampling_params(preparer):
    request = preparer.prompt(np.arange(65, 75), [], GREEDY.with_(truncate_prompt_tokens=3))
    assert request.prompt_ids == (72, 73, 74)


def test_a_request_has_sampling_params_of_its_own(preparer):
    params = SamplingParams(max_tokens=4)
    request = preparer.prompt([65], [], params)
    params.max_tokens = 9
    assert request.sampling.max_tokens == 4
    params.n, params.temperature = 2, 0
    with pytest.raises(InvalidRequest, match="n must be 1 when using greedy sampling, got 2"):
        preparer.prompt([65], [], params)


@pytest.mark.parametrize("text", [" ", "a", "a b ", "<|im_end|>", "<image>", "\U0001f600"])
def test_a_text_that_no_context_holds_is_not_tokenized(make_preparer, monkeypatch, text):
    """CVE-2025-46560, CVE-2026-9540: minutes and gigabytes for a body of some megabytes."""
    preparer = make_preparer(max_model_len=64)
    long = text * (10**6 // len(text))
    counted = []
    encode = preparer.tokenizer.encode_text
    monkeypatch.setattr(preparer.tokenizer, "encode_text", lambda part: counted.append(len(part)) or encode(part))
    monkeypatch.setattr(preparer.tokenizer, "encode_pieces", lambda *_, **__: pytest.fail("all of it is tokenized"))
    for ask_for in (lambda: ask(preparer, long), lambda: preparer.prompt(long, (), GREEDY)):
        with pytest.raises(TooLong, match=r"which are \d+ tokens or more, the context holds 64 with") as caught:
            ask_for()
        assert caught.value.prompt_tokens >= 128
    assert sum(counted) < 10**5


def test_a_text_that_is_cut_is_tokenized_up_to_a_limit(make_preparer):
    preparer = make_preparer(max_model_len=64)
    assert len(preparer.prompt("a b " * 10**4, (), GREEDY, keep_last=8).prompt_ids) == 8
    with pytest.raises(InvalidRequest, match=rf"has {MAX_CHARACTERS + 1} characters, the limit is {MAX_CHARACTERS}:"):
        preparer.prompt("a" * (MAX_CHARACTERS + 1), (), GREEDY, keep_last=8)


def test_sparse_texts_that_fit_are_taken(make_preparer):
    """More characters a token than is usual, and more tokens where they are counted in slices."""
    preparer = make_preparer(max_model_len=4096)
    text = ("\N{GREEK SMALL LETTER ALPHA}" * 3 + " ") * 500
    assert ask(preparer, text).prompt_ids


def test_more_parts_than_any_context_has_tokens(preparer):
    with pytest.raises(InvalidRequest, match=r"^messages have 20001 parts in all, the limit is 16384: "):
        parse_messages([{"role": "user", "content": "a"}, {"role": "user", "content": [{"text": "a"}] * 20_000}])


def test_texts_without_end_are_joined_in_one_go():
    """Joined one by one, two million pieces would copy terabytes."""
    pieces = [Text("a"), Text("")] * 10**6
    assert join_text([Special("<x>"), *pieces, Special("<x>"), Text("")]) == [
        *(Special("<x>"), Text("a" * 10**6), Special("<x>")),
    ]
