"""The forms of prompts that `generate` takes."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest, UnknownOption
from tilewise.ignored import Ignored
from tilewise.inputs.media.cache import MediaByUuid
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.media.video import FrameChoice
from tilewise.inputs.prompts import Prompt, TextPrompt, TokensPrompt, read_prompts

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
        ([np.int64(1), np.int32(2)], [[1, 2]]),
        (np.array([1, 2]), [[1, 2]]),
        ([np.array([1, 2]), torch.tensor([3])], [[1, 2], [3]]),
        (TokensPrompt(prompt_token_ids=np.array([1, 2]), prompt="Hi"), [[1, 2]]),
        (TextPrompt(prompt="Hi", multi_modal_data=None), ["Hi"]),
        ({"prompt": "Hi", "prompt_token_ids": None, "prompt_embeds": None}, ["Hi"]),
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


COLOURS = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
"""Of a picture of 5 x 6 pixels."""
GRAY = COLOURS[:, :, 0]


@pytest.mark.parametrize(
    ("array", "mode", "pixels"),
    [
        (COLOURS, "RGB", COLOURS),
        (COLOURS.transpose(2, 0, 1), "RGB", COLOURS),
        (COLOURS.astype(np.float32), "RGB", COLOURS),
        (COLOURS / 255, "RGB", COLOURS),
        ((COLOURS / 255).astype(np.float16), "RGB", COLOURS),
        (COLOURS.astype(np.int64), "RGB", COLOURS),
        (GRAY, "L", GRAY),
        (GRAY[:, :, None], "L", GRAY),
        (GRAY[None], "L", GRAY),
        (np.dstack([COLOURS, GRAY]), "RGBA", np.dstack([COLOURS, GRAY])),
        (GRAY > 99, "L", (GRAY > 99) * 255),
        (torch.from_numpy(COLOURS), "RGB", COLOURS),
        (torch.from_numpy(COLOURS).permute(2, 0, 1), "RGB", COLOURS),
        (torch.from_numpy(COLOURS).permute(2, 0, 1).float().div(255).requires_grad_(), "RGB", COLOURS),
        (torch.from_numpy(COLOURS).bfloat16(), "RGB", torch.from_numpy(COLOURS).bfloat16().float().numpy()),
        (COLOURS[:3], "RGB", COLOURS[:3]),
        (torch.from_numpy(COLOURS[:3, :3].copy()), "RGB", COLOURS[:3, :3].transpose(1, 2, 0)),
    ],
)
def test_pictures_in_every_form_of_arrays(array, mode, pixels):
    (found,) = media(image=array)
    assert found.mode == mode
    assert np.array_equal(np.asarray(found), pixels)


def test_four_dimensions_are_several_pictures():
    assert [picture.size for picture in media(image=np.stack([COLOURS, COLOURS]))] == [(5, 6)] * 2


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 5, 2), np.uint8), r"must be \[H, W\], \[H, W, C\] or \[C, H, W\] .*, got \[5, 5, 2\]"),
        (np.zeros(4, np.uint8), r"got \[4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"got \[0, 4, 3\]"),
        (np.full((4, 4, 3), 256), "values from 0 to 255, .*, got 256 to 256"),
        (np.full((4, 4, 3), -0.5), "got -0.5 to -0.5: leave normalisation to the engine"),
        (np.full((4, 4, 3), np.nan), "got nan to nan"),
        (np.full((4, 4, 3), "a"), "must have numbers, got <U1"),
    ],
)
def test_other_arrays_are_refused_with_what_is_wrong(array, words):
    with pytest.raises(InvalidRequest, match=words):
        media(image=array)


@pytest.mark.parametrize("value", [7, b"bytes", {"url": "x"}])
def test_other_pictures_are_refused(value):
    with pytest.raises(InvalidRequest, match="A picture must be a PIL image, an array or a path, got"):
        media(image=value)


def same_frames(frames) -> bool:
    return np.array_equal(np.stack([np.asarray(frame) for frame in frames]), FRAMES)


@pytest.mark.parametrize(
    "video",
    [
        *(FRAMES, (FRAMES, {"fps": 2.0}), [FRAMES], [(FRAMES, {"fps": 2.0})]),
        *(
            FRAMES.transpose(0, 3, 1, 2),
            FRAMES / 255,
            torch.from_numpy(FRAMES).permute(0, 3, 1, 2),
            FRAMES[None],
            list(FRAMES),
        ),
    ],
    ids=["array", "pair", "list", "pairs", "channels first", "fractions", "tensor", "five dimensions", "arrays"],
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
    "video",
    [np.zeros((0, 64, 64, 3)), [[]], [FRAMES, []], ([], {"fps": 1}), [np.zeros((0, 64, 64, 3))]],
    ids=["array", "list", "second", "pair", "arrays"],
)
def test_a_video_of_no_frames_is_refused(video):
    with pytest.raises(InvalidMedia, match="multi_modal_data: a video has no frames: send at least one"):
        media(video=video)


@pytest.mark.parametrize("data", [{"video": []}, {"image": []}, {"image": np.zeros((0, 4, 4, 3))}])
def test_no_media_for_a_marker_are_refused(data):
    (kind,) = data
    assert read_prompts({"prompt": "Why?", "multi_modal_data": data}, MediaReader())[0].media == []
    with pytest.raises(InvalidMedia, match=f"{kind} is empty, and the prompt has <{kind}>: send it"):
        read_prompts({"prompt": f"<{kind}>\nWhy?", "multi_modal_data": data}, MediaReader())
    if kind == "image":
        with pytest.raises(InvalidMedia, match="image is empty, and the prompt has <image>"):
            read_prompts({"prompt": "<image>\nWhy?", "multi_modal_data": {**data, "video": FRAMES}}, MediaReader())


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a", "HTTPS://x.example/a.png", "file:///a", "data:image/png;base64,AA"]
)
def test_urls_are_no_paths(kind, url):
    with pytest.raises(InvalidMedia, match=rf"takes no URLs, got .*: open it with fetch_{kind} of .*LLM\.chat"):
        media(**{kind: url})


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.randn(1, 256, 64), "embeddings of pictures need enable_mm_embeds=True"),
        ([torch.rand(256, 64)], "embeddings of pictures need enable_mm_embeds=True"),
        (torch.rand(7, 256, 64), "embeddings of pictures need enable_mm_embeds=True"),
    ],
)
def test_embeddings_are_refused(image, says):
    with pytest.raises(InvalidRequest, match=says):
        media(image=image)


@pytest.mark.parametrize(
    "video", [7, CAT, [7], np.zeros((3, 5, 5, 2)), FRAMES[0], b"bytes"], ids=["7", "picture", "[7]", "2", "3D", "bytes"]
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


def test_media_are_kept_under_their_uuids():
    reader = MediaReader(handles=MediaByUuid(10_000))
    sent = {"image": [CAT, DOG], "video": FRAMES}
    names = {"image": ["cat", None], "video": "film"}
    read_prompts({"prompt": "x", "multi_modal_data": sent, "multi_modal_uuids": names}, reader)
    later = {"prompt": "x", "multi_modal_data": {"image": [DOG, None]}, "multi_modal_uuids": {"image": [None, "cat"]}}
    assert [picture.size for picture in read_prompts(later, reader)[0].media] == [DOG.size, CAT.size]
    (film,) = read_prompts({"prompt": "x", "multi_modal_uuids": {"video": ["film"]}}, reader)[0].media
    assert same_frames(film)
    with pytest.raises(InvalidMedia, match="uuid 'dog' names no image that is kept"):
        read_prompts({"prompt": "x", "multi_modal_uuids": {"image": "dog"}}, reader)


def test_what_has_no_effect_is_named():
    ignored = Ignored()
    prompt = {"prompt": "x", "token_type_ids": [0], "multi_modal_data": {"video": (FRAMES, {"fps": 2.0}), "audio": []}}
    read_prompts(prompt, READER, ignored)
    assert ignored.names == ("token_type_ids", "video metadata")


def test_ids_win_over_the_text_that_results_show():
    (prompt,) = read({"prompt": "Hi", "prompt_token_ids": [1, 2]})
    assert (prompt.prompt, prompt.text) == ([1, 2], "Hi")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"prompt": "x", "multi_modal_data": {"audio": CAT}}, "audio=.* is not possible: InternVL models see pictures"),
        ({"prompt_embeds": [[0.5]]}, "prompt_embeds=.* is not possible: Send the text or the token ids"),
        ({"prompt": "x", "multi_modal_data": {"image": [None]}}, "image is None: send it, or the uuid"),
        (
            {"prompt": "x", "multi_modal_data": {"image": CAT}, "multi_modal_uuids": {"image": ["a", "b"]}},
            r"multi_modal_uuids: image has 2 entries for 1 image\(s\)",
        ),
        ({"prompt": "x", "multi_modal_uuids": {"image": 7}}, "image must be a text or a list, got int"),
        ({"prompt": "x", "multi_modal_uuids": {"video": [7]}}, "uuid must be a text of 1 to 256 characters, got 7"),
    ],
)
def test_what_cannot_be_is_refused_by_name(prompt, words):
    with pytest.raises(InvalidRequest, match=words):
        read(prompt)
