"""Media under names: whose they are, what is kept, and what a name means when its content has changed."""

from __future__ import annotations

import pytest

from tests.inputs.pictures import picture_url, user, video_url
from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.inputs.media.cache import MediaByUuid
from tilewise.inputs.media.fetch import MediaFiles
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.media.video import FrameChoice
from tilewise.inputs.messages import read_messages


@pytest.fixture
def reader():
    return MediaReader(handles=MediaByUuid(10_000), frames=FrameChoice(2))


def widths(reader: MediaReader, *parts, scope: str | None = "a") -> list[int]:
    _, media = read_messages([user(*parts)], reader.timed(scope=scope))
    return [item[0].width if isinstance(item, list) else item.width for item in media]


def named(uuid, url=None, kind="image_url") -> dict:
    return {"type": kind, kind: url, "uuid": uuid}


def test_a_name_alone_stands_for_what_was_sent_with_it(reader):
    assert widths(reader, named("cat", picture_url(9)), named("dog", picture_url(7))) == [9, 7]
    assert widths(reader, named("dog"), named("cat"), {"image_url": {"url": None}, "uuid": "dog"}) == [7, 9, 7]


def test_a_name_within_one_request(reader):
    assert widths(reader, named("cat", picture_url(9)), named("cat")) == [9, 9]


def test_a_name_with_other_content_means_that_from_now_on(reader):
    widths(reader, named("cat", picture_url(9)))
    assert widths(reader, named("cat", picture_url(5))) == [5]
    assert widths(reader, named("cat")) == [5]


@pytest.mark.parametrize("scope", ["b", "", "A", None])
def test_nobody_meets_the_media_of_others(reader, scope):
    widths(reader, named("cat", picture_url(9)))
    with pytest.raises(InvalidMedia, match=r"uuid 'cat' .*: send its content again"):
        widths(reader, named("cat"), scope=scope)


def test_without_a_scope_nothing_is_kept(reader):
    assert widths(reader, named("cat", picture_url(9)), scope=None) == [9]
    with pytest.raises(InvalidMedia, match="as nothing is kept here: send its content again"):
        widths(reader, named("cat"), scope=None)
    with pytest.raises(InvalidMedia, match="names no image that is kept"):
        widths(reader, named("cat"), scope="")


def test_scope_and_name_do_not_run_into_each_other(reader):
    widths(reader, named("bc", picture_url(9)), scope="a")
    with pytest.raises(InvalidMedia):
        widths(reader, named("c"), scope="ab")


def test_a_picture_is_no_video(reader):
    widths(reader, named("cat", picture_url(9)))
    with pytest.raises(InvalidMedia, match="names no video that is kept"):
        widths(reader, named("cat", kind="video_url"))


@pytest.mark.parametrize("url", [video_url(), f"data:video/jpeg;base64,{picture_url().partition(',')[2]}"])
def test_videos_and_lists_of_frames_have_names_too(reader, url):
    first = widths(reader, named("film", url, "video_url"))
    assert widths(reader, named("film", kind="video_url")) == first


def test_what_cannot_be_read_is_not_kept(reader):
    with pytest.raises(InvalidMedia, match="is not a picture"):
        widths(reader, named("cat", "data:image/png;base64,aGVsbG8="))
    with pytest.raises(InvalidMedia, match="names no image that is kept"):
        widths(reader, named("cat"))


def test_the_longest_unused_go_when_bytes_run_out():
    handles = MediaByUuid(10)
    for name in ("one", "two"):
        handles.keep("", "image", name, MediaFiles((bytes(4),)))
    handles.find("", "image", "one")
    handles.keep("", "image", "three", MediaFiles((bytes(2), bytes(3))))
    with pytest.raises(InvalidMedia, match=r"the limit is 10 bytes of files, raise TILEWISE_MAX_MEDIA_HANDLES_MB"):
        handles.find("", "image", "two")
    assert handles.find("", "image", "one").num_bytes == 4
    assert handles.find("", "image", "three").num_bytes == 5


def test_what_is_larger_than_the_room_takes_its_old_content_with_it():
    """The name must not go on to mean what it meant before."""
    handles = MediaByUuid(10)
    handles.keep("", "image", "one", MediaFiles((bytes(4),)))
    handles.keep("", "image", "one", MediaFiles((bytes(11),)))
    with pytest.raises(InvalidMedia):
        handles.find("", "image", "one")


@pytest.mark.parametrize("uuid", ["", 7, ["cat"], {}, "x" * 257])
def test_a_name_is_a_short_text(reader, uuid):
    with pytest.raises(InvalidRequest, match=r"content\[0\]: uuid must be a text of 1 to 256 characters"):
        widths(reader, named(uuid, picture_url()))


def test_a_part_without_content_and_name_is_refused(reader):
    with pytest.raises(InvalidRequest, match="image_url needs a URL, got NoneType"):
        widths(reader, named(None))
