"""What the inputs of a request take, part by part, on clocks that move by known steps."""

from __future__ import annotations

import base64
import io
import itertools
from dataclasses import replace

import pytest
from PIL import Image

from tilewise.errors import InvalidMedia
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.images import open_image
from tilewise.inputs.media.reader import MediaPart, MediaReader
from tilewise.inputs.messages import read_messages
from tilewise.inputs.pieces import Message
from tilewise.inputs.prompts import read_prompts
from tilewise.sampling_params import SamplingParams
from tilewise.timing import InputTiming, MediaCounts, Stopwatch


def ticking(start: int = 0):
    """Each look at it is a second later than the one before."""
    return map(float, itertools.count(start)).__next__


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "teal").save(file, "PNG")
    return file.getvalue()


def data_url() -> str:
    return "data:image/png;base64," + base64.b64encode(png()).decode()


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture
def reader():
    return MediaReader(watch=Stopwatch(ticking()))


def test_fetched_media_take_a_download_and_a_decoding_each(reader):
    read_messages(user({"image_url": data_url()}, {"image_url": {"url": data_url()}}), reader)
    counts = MediaCounts(downloads=2, download_bytes=2 * len(png()), pictures=2)
    assert reader.watch.timing == InputTiming(download=2, decode=2, media=counts)


def test_pictures_that_are_pictures_already_take_neither(reader):
    picture = Image.new("RGB", (30, 20))
    read_messages(user({"image_pil": picture}, {"video_frames": [picture]}), reader)
    assert reader.watch.timing == InputTiming()


def test_time_passes_between_fetching_and_decoding_alone():
    """One clock for both, which moves while a picture is fetched."""
    now = [0.0]

    class Slow(MediaAccess):
        def fetch(self, url: str, *args) -> bytes:
            now[0] += 5
            return png()

    reader = MediaReader(Slow(), watch=Stopwatch(lambda: now[0]))
    read_messages(user({"image_url": "https://example.org/a.png"}), reader)
    assert (reader.watch.timing.download, reader.watch.timing.decode) == (5, 0)


def test_each_request_has_a_watch_of_its_own(reader):
    first, second = reader.timed(), reader.timed()
    first.picture(MediaPart(data_url(), "image"))
    assert first.watch.timing.decode > 0
    assert second.watch.timing == reader.watch.timing == InputTiming()


def test_what_fails_takes_time_and_is_counted(reader):
    for url in ("data:image/png;base64,?", "data:image/png;base64,aGVsbG8="):
        with pytest.raises(InvalidMedia):
            reader.picture(MediaPart(url, "image"))
    counts = MediaCounts(downloads=1, download_bytes=len(b"hello"), failures=2)
    assert reader.watch.timing == InputTiming(download=2, decode=1, media=counts)


def test_files_of_raw_prompts_are_decoded_and_not_downloaded(tmp_path, reader):
    (tmp_path / "a.png").write_bytes(png())
    with_file, without = read_prompts(
        [{"prompt": "a", "multi_modal_data": {"image": tmp_path / "a.png"}}, {"prompt": "b"}], reader
    )
    assert with_file.reading.download == 0
    assert with_file.reading.decode > 0
    assert without.reading == InputTiming()
    assert with_file.arrival <= without.arrival


@pytest.mark.parametrize("raw", [False, True])
def test_cutting_and_tokenizing_are_preprocessing(make_preparer, raw):
    preparer, picture = replace(make_preparer(), clock=ticking(7)), open_image(png())
    if raw:
        request = preparer.prompt("<image>a", [picture], SamplingParams())
    else:
        request = preparer.chat([Message("user", "a", 1)], [picture], SamplingParams())
    assert request.inputs == InputTiming(preprocess=1)
    assert request.inputs.total == 1
