"""Videos: which frames are chosen, and files that are short, cut, silent, or no videos."""

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.inputs.templates import Message
from tilewise.inputs.video import MAX_FRAMES, FrameChoice, read_video
from tilewise.types import SamplingParams

FRAMES, RATE, STEP = 40, 10, 6


def film(path: Path, frames: int = FRAMES, size: tuple[int, int] = (64, 48)) -> Path:
    """A video whose frame i is grey of level 6 * i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), STEP * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return film(tmp_path_factory.mktemp("video") / "grey.mp4")


def levels(frames) -> list[int]:
    """The frame numbers, read from the pictures themselves."""
    return [round(np.asarray(frame).mean() / STEP) for frame in frames]


def reference_indices(total: int, segments: int) -> list[int]:
    """The middle of each of equally long segments between the first and the last frame."""
    length = float(total - 1) / segments
    return [int(length / 2 + np.round(length * segment)) for segment in range(segments)]


@settings(max_examples=400, deadline=None)
@given(total=st.integers(2, 20_000), wanted=st.integers(1, 64))
def test_indices_follow_the_reference_formula(total, wanted):
    if total > wanted:
        assert FrameChoice(wanted).indices(total) == reference_indices(total, wanted)


def test_indices_of_known_cases():
    assert FrameChoice(8).indices(40) == [2, 7, 12, 17, 22, 26, 31, 36]
    assert FrameChoice(1).indices(40) == [19]
    assert FrameChoice(32).indices(1) == [0]


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 600), wanted=st.integers(1, MAX_FRAMES))
def test_chosen_frames_are_distinct_and_exist(total, wanted):
    indices = FrameChoice(wanted).indices(total)
    assert len(indices) == min(wanted, total)
    assert indices == sorted(set(indices))
    assert indices[0] >= 0
    assert indices[-1] < total


@pytest.mark.parametrize("wanted", [1, 4, 8, 32])
def test_the_chosen_frames_are_decoded(video, wanted):
    frames = read_video(video, FrameChoice(wanted))
    assert levels(frames) == reference_indices(FRAMES, wanted)
    assert {(frame.mode, frame.size) for frame in frames} == {("RGB", (64, 48))}


def test_bytes_and_paths_give_the_same_frames(video):
    choice = FrameChoice(6)
    from_bytes = read_video(video.read_bytes(), choice)
    assert levels(from_bytes) == levels(read_video(video, choice)) == levels(read_video(str(video), choice))


@pytest.mark.parametrize(("fps", "count"), [(1, 4), (2, 8), (0.1, 1), (1000, 32)])
def test_frames_a_second_with_num_frames_as_the_cap(video, fps, count):
    frames = read_video(video, FrameChoice(32, fps=fps))
    assert levels(frames) == reference_indices(FRAMES, count)


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_a_video_with_no_more_frames_than_asked_for_gives_all_of_them(tmp_path, frames):
    short = film(tmp_path / "short.mp4", frames)
    assert levels(read_video(short, FrameChoice(8))) == list(range(frames))


def test_a_video_without_sound_and_one_in_another_container(tmp_path):
    assert levels(read_video(film(tmp_path / "grey.avi"), FrameChoice(4))) == reference_indices(FRAMES, 4)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(InvalidMedia, match=r"sound\.wav is not a video that can be read"):
        read_video(path)


def test_a_video_cut_short_gives_the_frames_that_are_there(tmp_path):
    """A container whose index comes first, or that needs none, can be played up to the cut."""
    data = film(tmp_path / "grey.avi").read_bytes()
    frames = levels(read_video(data[: len(data) * 6 // 10], FrameChoice(8)))
    assert 1 <= len(frames) <= 8
    assert frames == sorted(frames)
    assert frames[-1] < FRAMES - 1


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_video_cut_before_its_index_is_refused(video, keep):
    data = video.read_bytes()
    with pytest.raises(InvalidMedia, match="the video"):
        read_video(data[: int(keep * len(data))])


@pytest.mark.parametrize("data", [b"", b"hello", b"<html></html>", bytes(range(256)) * 8])
def test_bytes_that_are_no_video(data):
    with pytest.raises(InvalidMedia, match="the video is not a video that can be read"):
        read_video(data)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_videos_give_frames_or_are_refused(video, changes):
    damaged = bytearray(video.read_bytes())
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    try:
        frames = read_video(bytes(damaged), FrameChoice(2))
    except InvalidMedia:
        return
    assert 1 <= len(frames) <= 2


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidMedia, match=r"gone\.mp4: no such file"):
        read_video(tmp_path / "gone.mp4")


def test_a_playlist_does_not_open_other_files(tmp_path, monkeypatch):
    """A list of files is a video format too; read from bytes, it must not reach the files of this machine."""
    film(tmp_path / "secret.mp4", 5)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidMedia):
        read_video(b"ffconcat version 1.0\nfile secret.mp4\n")


def test_a_path_is_never_a_protocol(video, monkeypatch):
    monkeypatch.chdir(video.parent)
    with pytest.raises(InvalidMedia):
        read_video(Path(f"concat:{video.name}"))


@pytest.mark.parametrize("count", [0, -1, MAX_FRAMES + 1])
def test_num_frames_out_of_range_names_the_range(count):
    with pytest.raises(InvalidRequest, match=f"num_frames={count} must be from 1 to {MAX_FRAMES}"):
        FrameChoice(count)


@pytest.mark.parametrize("fps", [0, -1.0, float("nan")])
def test_fps_must_be_positive(fps):
    with pytest.raises(InvalidRequest, match=r"fps=.* must be above 0"):
        FrameChoice(fps=fps)


def test_every_frame_is_one_tile(make_preparer, video):
    frames = read_video(video, FrameChoice(3))
    request = make_preparer().chat([Message("user", "Why?", videos=(3,))], [frames], SamplingParams())
    assert [image.grid for image in request.images] == [(1, 1)] * 3
    assert request.num_tiles == 3
    assert "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nWhy?" in request.prompt
