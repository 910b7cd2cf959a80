"""The forms of prompts that `generate` takes."""

import av
import numpy as np
import pytest
from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest, UnknownOption
from tilewise.inputs.chat import MediaReader
from tilewise.inputs.prompts import Prompt, read_prompts
from tilewise.inputs.video import FrameChoice

READER = MediaReader(frames=FrameChoice(2))
CAT, DOG = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (6, 4), "blue")
FRAMES = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)


def read(prompts):
    return read_prompts(prompts, READER)


def media(**data):
    return read({"prompt": "x", "multi_modal_data": data})[0].media


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("Hi", ["Hi"]),
        (["Hi", "Ho"], ["Hi", "Ho"]),
        (("Hi", "Ho"), ["Hi", "Ho"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ({"prompt": "Hi"}, ["Hi"]),
        ({"prompt_token_ids": [1, 2]}, [[1, 2]]),
        ([{"prompt": "Hi"}, "Ho", [1, 2]], ["Hi", "Ho", [1, 2]]),
        ({"prompt": ["Hi", "Ho"]}, ["Hi", "Ho"]),
        ("", [""]),
    ],
)
def test_forms(prompts, expected):
    assert [prompt.prompt for prompt in read(prompts)] == expected


def test_a_list_of_texts_in_one_dict_shares_its_picture_and_options():
    options = {"max_dynamic_patch": 2}
    prompts = read({"prompt": ["A", "B", "C"], "multi_modal_data": {"image": CAT}, "mm_processor_kwargs": options})
    assert prompts == [Prompt(text, [CAT], options) for text in "ABC"]


def test_every_dict_of_a_list_has_its_own_picture():
    prompts = read(
        [{"prompt": "A", "multi_modal_data": {"image": CAT}}, {"prompt": "B", "multi_modal_data": {"image": DOG}}]
    )
    assert [prompt.media for prompt in prompts] == [[CAT], [DOG]]


def test_one_picture_or_several():
    assert media(image=CAT) == [CAT]
    assert media(image=[CAT, DOG]) == [CAT, DOG]
    assert media(image=None) == []


def test_pictures_as_arrays():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(media(image=pixels)[0]), pixels)


@pytest.mark.parametrize("as_text", [False, True])
def test_pictures_as_paths(tmp_path, as_text):
    path = tmp_path / "cat.png"
    CAT.save(path)
    assert np.array_equal(np.asarray(media(image=str(path) if as_text else path)[0]), np.asarray(CAT))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)],
)
def test_other_arrays_are_refused_with_type_and_shape(array):
    with pytest.raises(InvalidRequest, match=r"must be uint8 \[H, W, 3\], got (uint8|float64) \["):
        media(image=array)


@pytest.mark.parametrize("value", [7, b"bytes", {"url": "x"}])
def test_other_pictures_are_refused(value):
    with pytest.raises(InvalidRequest, match="A picture must be a PIL image, an array or a path, got"):
        media(image=value)


def same_frames(frames) -> bool:
    return np.array_equal(np.stack([np.asarray(frame) for frame in frames]), FRAMES)


@pytest.mark.parametrize(
    "video",
    [FRAMES, (FRAMES, {"fps": 2.0}), [FRAMES], [(FRAMES, {"fps": 2.0})]],
    ids=["array", "pair", "list", "pairs"],
)
def test_a_video_as_an_array_of_frames(video):
    (frames,) = media(video=video)
    assert same_frames(frames)


def test_a_video_as_a_list_of_pictures():
    (frames,) = media(video=[Image.fromarray(frame) for frame in FRAMES])
    assert same_frames(frames)


def test_several_videos_and_pictures_before_them():
    items = media(video=[FRAMES, FRAMES[:1]], image=[CAT])
    assert items[0] is CAT
    assert [len(frames) for frames in items[1:]] == [3, 1]


def test_a_video_as_a_path(tmp_path):
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode())
    assert [len(frames) for frames in media(video=path)] == [2]
    assert [len(frames) for frames in media(video=[str(path), path])] == [2, 2]


def test_no_frames_are_no_video():
    assert media(video=[]) == []


@pytest.mark.parametrize(
    "video", [7, CAT, [7], np.zeros((3, 4, 5, 3)), b"bytes"], ids=["7", "picture", "[7]", "f8", "bytes"]
)
def test_other_videos_are_refused(video):
    with pytest.raises(InvalidRequest):
        media(video=video)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InvalidMedia, match=r"gone\.png: no such file"):
        media(image=tmp_path / "gone.png")
    with pytest.raises(InvalidMedia, match=r"gone\.mp4: no such file"):
        media(video=tmp_path / "gone.mp4")


def test_limits_hold_before_any_file_is_opened(tmp_path):
    reader = MediaReader(limits={"image": 1, "video": 0})
    with pytest.raises(InvalidRequest, match=r"At most 1 image\(s\) may be provided in one prompt\."):
        read_prompts({"prompt": "x", "multi_modal_data": {"image": [tmp_path / "gone.png"] * 2}}, reader)
    with pytest.raises(InvalidRequest, match=r"At most 0 video\(s\) may be provided in one prompt\."):
        read_prompts({"prompt": "x", "multi_modal_data": {"video": FRAMES}}, reader)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"promt": "x"}, r"A prompt dict has no option 'promt'. Did you mean prompt\?"),
        ({"prompt": "x", "multi_modal_data": {"images": CAT}}, r"no option 'images'. Did you mean image\?"),
        ({"prompt": "x", "multi_modal_data": {"audio": CAT}}, r"multi_modal_data has no option 'audio'"),
        ({"prompt": "x", 7: "x"}, r"no option '7'"),
    ],
)
def test_unknown_keys_offer_the_nearest(prompt, words):
    with pytest.raises(UnknownOption, match=words):
        read(prompt)


@pytest.mark.parametrize(
    "prompts", [None, 7, b"Hi", {1, 2}, [None], [7.5], [b"Hi"], [[1, "a"]], [True], [[]]], ids=repr
)
def test_other_prompts_are_refused(prompts):
    with pytest.raises(InvalidRequest, match="must be a text"):
        read(prompts)


@pytest.mark.parametrize(
    "prompt",
    [{}, {"prompt": None}, {"prompt": 7}, {"prompt": []}, {"prompt": ["a", 7]}, {"prompt_token_ids": "x y"},
     {"prompt_token_ids": [1, 2.5]}, {"prompt_token_ids": [True]}],
    ids=repr,
)  # fmt: skip
def test_dicts_without_a_prompt_are_refused(prompt):
    with pytest.raises(InvalidRequest, match="prompt"):
        read(prompt)


@pytest.mark.parametrize("key", ["multi_modal_data", "mm_processor_kwargs"])
@pytest.mark.parametrize("value", [7, "x", ["image"]], ids=repr)
def test_media_and_options_must_be_dicts(key, value):
    with pytest.raises(InvalidRequest, match=f"{key}"):
        read({"prompt": "x", key: value})


def test_a_cache_salt_comes_along():
    assert read({"prompt": "Hi", "cache_salt": "a"})[0].cache_salt == "a"
    assert read("Hi")[0].cache_salt is None


@pytest.mark.parametrize("salt", ["", 7, b"a"])
def test_a_cache_salt_that_is_none(salt):
    with pytest.raises(InvalidRequest, match="cache_salt must be a text"):
        read({"prompt": "Hi", "cache_salt": salt})
