"""Videos: which frames are chosen, and files that are short, cut, silent, or no videos."""

import io
import re
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.inputs import pictures
from tilewise.errors import Cancelled, InvalidMedia, InvalidRequest
from tilewise.ignored import Ignored
from tilewise.inputs.media.images import ImageLimits, Opening
from tilewise.inputs.media.limits import MAX_FRAMES, MediaBudget, MediaLimits
from tilewise.inputs.media.video import FrameChoice, read_video
from tilewise.inputs.pieces import Message
from tilewise.sampling_params import SamplingParams

FRAMES, RATE, STEP = 40, 10, 6


def film(
    path: Path,
    frames: int = FRAMES,
    size: tuple[int, int] = (64, 48),
    picture: Image.Image | None = None,
    gop: int = 12,
    **options: str,
) -> Path:
    """A video whose frame i is grey of level 6 * i, or whose frames are all one picture."""
    size = picture.size if picture else size
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        stream.gop_size = gop
        for index in range(frames):
            pixels = np.asarray(picture) if picture else np.full((size[1], size[0], 3), STEP * index, np.uint8)
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


@settings(max_examples=400)
@given(total=st.integers(2, 20_000), wanted=st.integers(1, 64))
def test_indices_follow_the_reference_formula(total, wanted):
    if total > wanted:
        assert FrameChoice(wanted).indices(total) == reference_indices(total, wanted)


@pytest.mark.parametrize(
    ("total", "seconds", "fps", "count"), [(40, 4.0, None, 40), (1, None, None, 1), (90, 3.0, 10, 30)]
)
def test_minus_one_is_all_frames_or_no_cap(total, seconds, fps, count):
    assert FrameChoice(-1, fps).indices(total, seconds) == (
        list(range(total)) if count == total else reference_indices(total, count)
    )


def test_indices_of_known_cases():
    assert FrameChoice(8).indices(40) == [2, 7, 12, 17, 22, 26, 31, 36]
    assert FrameChoice(1).indices(40) == [19]
    assert FrameChoice(32).indices(1) == [0]


@settings(max_examples=200)
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


def test_frames_that_are_missing_are_named(tmp_path):
    data = film(tmp_path / "grey.mp4", movflags="faststart").read_bytes()
    ignored = Ignored()
    frames = levels(read_video(data[: len(data) * 7 // 10], FrameChoice(-1), ignored=ignored))
    assert frames[:-1] == list(range(len(frames) - 1))  # the last one is what was there of it
    assert FRAMES // 2 < len(frames) < FRAMES
    assert ignored.names == ("damaged_frames",)


def test_a_whole_video_leaves_nothing_to_name(video):
    ignored = Ignored()
    assert levels(read_video(video, FrameChoice(-1), ignored=ignored)) == list(range(FRAMES))
    assert not ignored


CONTAINERS = [
    ("libvpx", "webm"), ("libvpx-vp9", "webm"), ("libx264", "matroska"), ("mpeg4", "matroska"), ("mjpeg", "avi"),
    ("mpeg2video", "mpegts"), ("libx264", "mpegts"), ("mpeg1video", "mpeg"), ("wmv2", "asf"), ("flv", "flv"),
    ("libx264", "flv"), ("gif", "gif"), ("libx264", "mp4"),
]  # fmt: skip


@pytest.mark.parametrize("keep", [1, 0.97, 0.8, 0.66, 0.5])
@pytest.mark.parametrize(("codec", "form"), CONTAINERS)
def test_a_file_that_ends_before_what_it_announces_is_named(codec, form, keep):
    data = pictures.video(20, size=64, codec=codec, container_format=form)
    end = int(keep * len(data))
    end -= form == "mpegts" and keep < 1 and end % 188 == 0  # a stream says nothing of what comes after a frame
    ignored = Ignored()
    frames, said = [], ""
    try:
        frames = read_video(data[:end], FrameChoice(-1), ignored=ignored)
    except InvalidMedia as refusal:
        said = str(refusal)
    if said:  # an MP4 has its index last, and the others a picture before the middle
        assert keep < (0.97 if form == "mp4" else 0.8)
        assert "send the whole file" in said
        return
    assert len(frames) == 20 if keep == 1 else 1 <= len(frames) <= 20
    assert ignored.names == (() if keep == 1 else ("damaged_frames",))


@pytest.mark.parametrize(("codec", "form", "sound"), [("mjpeg", "avi", "mp3"), ("libx264", "mpegts", "aac")])
@pytest.mark.parametrize("seekable", [True, False])
def test_a_whole_video_with_sound_is_not_named(codec, form, sound, seekable):
    """Written to a file, and to a pipe in which nobody can go back to put down its length."""

    class File(io.BytesIO):
        def seekable(self):
            return seekable

    file = File()
    with av.open(file, "w", format=form) as container:
        stream, track = container.add_stream(codec, rate=25), container.add_stream(sound, rate=48000, layout="stereo")
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9 * index, np.uint8))))
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1920), np.int16), format="s16", layout="stereo")
            heard.sample_rate, heard.pts = 48000, 1920 * index
            container.mux(track.encode(heard))
        container.mux(stream.encode())
        container.mux(track.encode())
    data = file.getvalue()
    for end, names in ((None, ()), (-200, ("damaged_frames",))):
        ignored = Ignored()
        assert len(read_video(data[:end], FrameChoice(-1), ignored=ignored)) >= 24
        assert ignored.names == names


def test_a_live_recording_without_sizes_is_whole_where_its_last_block_is():
    """Browsers record WebM without knowing where it will end, and without its duration."""
    data = bytearray(pictures.video(20, size=64, codec="libvpx", container_format="webm"))
    segment = data.index(bytes.fromhex("18538067")) + 4
    data[segment : segment + 8] = bytes.fromhex("01ffffffffffffff")
    for cut, names in ((0, ()), (300, ("damaged_frames",))):
        ignored = Ignored()
        assert read_video(bytes(data[: len(data) - cut]), FrameChoice(-1), ignored=ignored)
        assert ignored.names == names


def test_a_hole_in_a_video_costs_its_frames_alone(tmp_path):
    data = bytearray(film(tmp_path / "grey.mp4", size=(320, 240), gop=1, movflags="faststart").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = b"\xff" * 400
    ignored = Ignored()
    frames = levels(read_video(bytes(data), FrameChoice(-1), ignored=ignored))
    assert frames[-1] == FRAMES - 1
    assert len(frames) >= FRAMES - 3
    assert bool(ignored) is (len(frames) < FRAMES)


@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_a_video_that_was_never_finished(video, keep):
    """Recorders write the index last."""
    data = video.read_bytes()
    with pytest.raises(InvalidMedia) as caught:
        read_video(data[: int(keep * len(data))])
    assert str(caught.value) == (
        "the video is an MP4 or QuickTime video that is damaged or cut off before its index (the moov box), without "
        "which no frame is found: send the whole file."
    )


def test_a_video_cut_in_its_index(video):
    data = video.read_bytes()
    with pytest.raises(InvalidMedia, match=r"that is damaged or cut off, its index \(the moov box\) with it: send"):
        read_video(data[: data.index(b"stsz")])


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("stsd", "has the codec unknown, which is not read here"),
        *(
            (place, "has no frame that can be decoded; send the whole file")
            for place in ("stts", "stsc", "stsz", "stco")
        ),
        *((place, "is not a video that can be read (it has sound alone)") for place in ("trak", "mdia")),
        ("moov", "cut off before its index (the moov box), without which no frame is found: send the whole file"),
    ],
)
def test_a_broken_index_is_one_sentence(video, place, said):
    data = video.read_bytes()
    with pytest.raises(InvalidMedia, match=re.escape(said)) as refusal:
        read_video(data.replace(place.encode(), b"\0\0\0\0"), FrameChoice(2))
    assert not re.search(r"Errno|\d{5}|: it\b|<", str(refusal.value))


@pytest.mark.parametrize("data", [b"", b"hello", b"<html></html>", bytes(range(256)) * 8])
def test_bytes_that_are_no_video(data):
    with pytest.raises(InvalidMedia, match="the video is not a video that can be read"):
        read_video(data)


@settings(max_examples=60)
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


def test_names_in_a_video_may_be_in_any_encoding(video):
    """Cameras write theirs as they like; nobody reads them here."""
    data = video.read_bytes()
    assert data.count(b"isom") > 0
    assert len(read_video(data.replace(b"ftypisom", b"ftyp\xffsom"), FrameChoice(2))) == 2


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


@pytest.mark.parametrize("count", [0, -2, MAX_FRAMES + 1])
def test_num_frames_out_of_range_names_the_range(count):
    with pytest.raises(InvalidRequest, match=f"num_frames={count} must be from 1 to {MAX_FRAMES}"):
        FrameChoice(count)


@pytest.mark.parametrize("fps", [0, -1.0, float("nan")])
def test_fps_must_be_positive(fps):
    with pytest.raises(InvalidRequest, match=r"fps=.* must be above 0"):
        FrameChoice(fps=fps)


def budget(**limits) -> MediaBudget:
    return MediaBudget(MediaLimits(**limits))


def test_a_video_of_too_many_frames_is_refused_however_few_are_chosen(video):
    read_video(video, FrameChoice(1), budget=budget(video_frames=FRAMES))
    with pytest.raises(InvalidMedia, match=r"more than 39 frames, the limit: .* raise VLLM_MAX_VIDEO_DECODE_FRAMES"):
        read_video(video, FrameChoice(1), budget=budget(video_frames=FRAMES - 1))


def test_frames_are_walked_no_further_than_the_last_that_was_chosen(video, monkeypatch):
    monkeypatch.setattr(FrameChoice, "indices", lambda *args: [0, 5])
    tight = budget(decode_seconds=60)
    looks = []
    monkeypatch.setattr("tilewise.inputs.media.limits.Deadline.left", lambda self: looks.append(1) or 1.0)
    assert levels(read_video(video, budget=tight)) == [0, 5]
    assert len(looks) < FRAMES + 10


def test_pixels_of_a_frame_are_limited_as_those_of_a_picture(video):
    with pytest.raises(InvalidMedia, match=r"A frame of the video has 64x48 = 3072 pixels, the limit is 3071"):
        read_video(video.read_bytes(), opening=Opening(ImageLimits(max_pixels=3071)))


def test_frames_are_checked_again_as_they_come(video, monkeypatch):
    """The header says nothing here; the frames themselves are too large."""
    monkeypatch.setattr("tilewise.inputs.media.video._VideoFile._check_codec", lambda *args: None)
    with pytest.raises(InvalidMedia, match=r"A frame of .* the limit is 3071"):
        read_video(video, opening=Opening(ImageLimits(max_pixels=3071)))


def test_the_decoder_allocates_no_frame_that_is_too_large(video, monkeypatch):
    """Whatever the header said: FFmpeg's own limit on pixels holds."""
    monkeypatch.setattr("tilewise.inputs.media.video._VideoFile._check_frame", lambda *args: None)
    with pytest.raises(InvalidMedia):
        read_video(video, opening=Opening(ImageLimits(max_pixels=3071)))


def test_decoding_has_a_deadline(video):
    with pytest.raises(
        InvalidMedia, match=r"takes longer than 1e-09 s, the limit: .* raise TILEWISE_VIDEO_DECODE_TIMEOUT"
    ):
        read_video(video, budget=budget(decode_seconds=1e-9))


def test_who_leaves_does_not_wait_for_a_video(video):
    left = budget()
    left.cancel()
    with pytest.raises(Cancelled):
        read_video(video, budget=left)


def test_chosen_frames_are_charged_and_others_are_not(video):
    read_video(video, FrameChoice(2), budget=budget(request_decoded_bytes=2 * 64 * 48 * 4))
    with pytest.raises(InvalidMedia, match="bytes of pixels or more, the limit is 24576"):
        read_video(video, FrameChoice(3), budget=budget(request_decoded_bytes=2 * 64 * 48 * 4))


@pytest.mark.parametrize(("codec", "form"), [("jpeg2000", "matroska"), ("ffv1", "matroska"), ("huffyuv", "avi")])
def test_codecs_that_nobody_films_with_are_refused(codec, form):
    with pytest.raises(InvalidMedia, match=f"the video has the codec {codec}, which is not read here: send H.264"):
        read_video(pictures.video(codec=codec, container_format=form))


@pytest.mark.parametrize(
    ("codec", "form"),
    [("libx264", "mp4"), ("libx265", "mp4"), ("libvpx", "webm"), ("libvpx-vp9", "webm"), ("libsvtav1", "mp4"),
     ("mjpeg", "avi"), ("mpeg2video", "mpegts"), ("mpeg1video", "mpeg"), ("wmv2", "asf"), ("flv", "flv"),
     ("gif", "gif")],
)  # fmt: skip
def test_what_cameras_and_the_web_write_is_read(codec, form):
    assert len(read_video(pictures.video(5, size=64, codec=codec, container_format=form), FrameChoice(2))) == 2


def test_every_frame_is_one_tile(make_preparer, video):
    frames = read_video(video, FrameChoice(3))
    request = make_preparer().chat([Message("user", "Why?", videos=(3,))], [frames], SamplingParams())
    assert [image.grid for image in request.images] == [(1, 1)] * 3
    assert request.num_tiles == 3
    assert "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nWhy?" in request.prompt
