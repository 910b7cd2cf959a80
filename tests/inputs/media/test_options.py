"""`media_io_kwargs`: what a request may say about how its media are opened."""

from __future__ import annotations

import math

import pytest
from PIL import Image

from tests.inputs.pictures import data_url, saved, user, video_url
from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.ignored import Ignored
from tilewise.inputs.media.images import to_rgb
from tilewise.inputs.media.limits import MediaLimits
from tilewise.inputs.media.reader import MediaOptions, MediaReader
from tilewise.inputs.media.video import FrameChoice
from tilewise.inputs.messages import read_messages


@pytest.mark.parametrize(
    "kwargs", [None, {}, {"video": None, "image": {}}, {"video": {"num_frames": None, "fps": None}}]
)
def test_nothing_said_is_as_the_server_does(kwargs):
    assert MediaOptions.of(kwargs) == MediaOptions()
    assert MediaOptions().frames(FrameChoice(7, 2.0)) == FrameChoice(7, 2.0)


def test_each_request_chooses_its_frames():
    reader = MediaReader(frames=FrameChoice(2))
    for count in (1, 3, 5):
        options = MediaOptions.of({"video": {"num_frames": count}})
        _, media = read_messages([user({"video_url": video_url(6)})], reader.timed(options))
        assert len(media[0]) == count
    assert reader.frames == FrameChoice(2)


def test_frames_a_second():
    options = MediaOptions.of({"video": {"fps": 2}})  # 10 a second in the file
    _, media = read_messages([user({"video_url": video_url(20)})], MediaReader().timed(options))
    assert len(media[0]) == 4


@pytest.mark.parametrize("count", [0, -2, 9, 10**9, 1.5, "9", "four", True, math.inf])
def test_the_server_s_own_limit_on_frames_holds(count):
    with pytest.raises(InvalidRequest, match=r"num_frames must be a whole number from 1 to 8, got .*CHOSEN_FRAMES"):
        MediaOptions.of({"video": {"num_frames": count}}, MediaLimits(chosen_frames=8))


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf, "-2", "two", True])
def test_fps_is_a_number_above_0(fps):
    with pytest.raises(InvalidRequest, match="fps must be a number above 0"):
        MediaOptions.of({"video": {"fps": fps}})


@pytest.mark.parametrize("colour", [[0, 0], [0, 0, 256], [0, 0, -1], "black", [0, 0, 0.5], [True, 0, 0], {}])
def test_a_background_is_three_numbers(colour):
    with pytest.raises(InvalidRequest, match="rgba_background_color must be"):
        MediaOptions.of({"image": {"rgba_background_color": colour}})


@pytest.mark.parametrize(
    ("kwargs", "hint"),
    [
        ({"videos": {}}, "media_io_kwargs has no option 'videos'. Did you mean video?"),
        ({"video": {"num_frame": 2}}, "media_io_kwargs: video has no option 'num_frame'. Did you mean num_frames?"),
        ({"image": {"num_frames": 2}}, "media_io_kwargs: image has no option 'num_frames'."),
    ],
)
def test_unknown_options_are_refused_with_the_nearest(kwargs, hint):
    with pytest.raises(UnknownOption) as caught:
        MediaOptions.of(kwargs)
    assert str(caught.value) == hint


def test_options_of_vllm_that_change_nothing_are_named():
    kwargs = {"image": {"image_mode": "RGB"}, "video": {"frame_recovery": True, "video_backend": "opencv", "fps": 2}}
    ignored = Ignored()
    assert MediaOptions.of(kwargs, ignored=ignored) == MediaOptions(fps=2.0)
    assert ignored.names == tuple(
        f"media_io_kwargs.{name}" for name in ("image.image_mode", "video.frame_recovery", "video.video_backend")
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [("image", {"image_mode": "L"}), ("video", {"video_backend": "opencv_dynamic"}), ("video", {"frame_recovery": []})],
)
def test_options_of_vllm_that_would_change_something_are_refused(kind, options):
    with pytest.raises(InvalidRequest, match="is not possible here, only"):
        MediaOptions.of({kind: options})


@pytest.mark.parametrize(("count", "frames"), [(8.0, 8), (-1, -1), (-1.0, -1)])
def test_whole_numbers_and_all_frames(count, frames):
    assert MediaOptions.of({"video": {"num_frames": count}}).num_frames == frames


@pytest.mark.parametrize("kwargs", ["video", [], {"video": [2]}, {"image": "black"}])
def test_options_of_a_wrong_shape_are_refused(kwargs):
    with pytest.raises(InvalidRequest, match="must be an object, got"):
        MediaOptions.of(kwargs)


def clear(colour) -> str:
    return data_url("image/png", saved(Image.new("RGBA", (4, 4), colour)))


def test_transparent_pictures_get_the_background_that_was_asked_for():
    reader = MediaReader().timed(MediaOptions.of({"image": {"rgba_background_color": [10, 20, 30]}}))
    _, media = read_messages([user({"image_url": clear((0, 0, 0, 0))}, {"image_url": clear((9, 8, 7, 255))})], reader)
    assert [to_rgb(image).getpixel((0, 0)) for image in media] == [(10, 20, 30), (9, 8, 7)]


def test_white_is_the_background_otherwise():
    _, media = read_messages([user({"image_url": clear((0, 0, 0, 0))})], MediaReader().timed())
    assert to_rgb(media[0]).getpixel((0, 0)) == (255, 255, 255)
