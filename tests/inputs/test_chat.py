"""Messages of the OpenAI form: every spelling of a content part, and counts checked before anything is fetched."""

import base64
import io

import av
import numpy as np
import pytest
from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.inputs.chat import MediaReader, read_messages
from tilewise.inputs.images import ImageLimits
from tilewise.inputs.media import MediaAccess
from tilewise.inputs.templates import Message
from tilewise.inputs.video import FrameChoice

READER = MediaReader(frames=FrameChoice(2))


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_url(width: int = 4) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 4), "red").save(buffer, "PNG")
    return data_url("image/png", buffer.getvalue())


def video_url(frames: int = 3) -> str:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode())
    return data_url("video/avi", buffer.getvalue())


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def read(*messages, reader: MediaReader = READER):
    return read_messages(messages, reader)


def test_plain_strings():
    parsed, media = read({"role": "system", "content": "S"}, {"role": "user", "content": "Hi"})
    assert parsed == [Message("system", "S"), Message("user", "Hi")]
    assert media == []


@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "assistant", "content": None}, user()])
def test_a_message_may_be_empty(message):
    parsed, media = read(message)
    assert parsed == [Message(message["role"], "")]
    assert media == []


@pytest.mark.parametrize("part", ["Hi", {"type": "text", "text": "Hi"}, {"text": "Hi"}])
def test_forms_of_a_text_part(part):
    assert read(user(part))[0] == [Message("user", "Hi")]


def test_several_texts_are_joined_by_newlines():
    assert read(user("a", {"type": "text", "text": "b"}))[0] == [Message("user", "a\nb")]


@pytest.mark.parametrize(
    "form",
    [
        lambda url: {"type": "image_url", "image_url": {"url": url}},
        lambda url: {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        lambda url: {"type": "image_url", "image_url": url},
        lambda url: {"image_url": url},
        lambda url: {"image_url": {"url": url}},
    ],
)
def test_forms_of_a_picture_part(form):
    parsed, media = read(user("What?", form(picture_url(9))))
    assert parsed == [Message("user", "What?", images=1)]
    assert [image.size for image in media] == [(9, 4)]


@pytest.mark.parametrize(
    "form", [lambda image: {"type": "image_pil", "image_pil": image}, lambda image: {"image_pil": image}]
)
def test_pictures_in_memory_are_taken_as_they_are(form):
    image = Image.new("RGB", (4, 4))
    parsed, media = read(user(form(image)))
    assert parsed[0].images == 1
    assert media[0] is image


@pytest.mark.parametrize(
    "form", [lambda url: {"type": "video_url", "video_url": {"url": url}}, lambda url: {"video_url": url}]
)
def test_forms_of_a_video_part(form):
    parsed, media = read(user("Why?", form(video_url())))
    assert parsed == [Message("user", "Why?", videos=(2,))]
    assert [frame.size for frame in media[0]] == [(16, 16)] * 2


@pytest.mark.parametrize("part", [{"type": "video_frames"}, {}])
def test_frames_in_memory_are_a_video(part):
    frames = [Image.new("RGB", (4, 4))] * 3
    parsed, media = read(user({**part, "video_frames": frames}))
    assert parsed[0].videos == (3,)
    assert media == [frames]


def test_media_come_message_by_message_with_pictures_before_videos():
    first = user({"video_url": video_url()}, {"image_url": picture_url(5)}, "A")
    second = user({"image_url": picture_url(6)}, {"image_url": picture_url(7)})
    parsed, media = read(first, {"role": "assistant", "content": "B"}, second)
    assert [(m.images, m.videos) for m in parsed] == [(1, (2,)), (0, ()), (2, ())]
    assert [len(item) if isinstance(item, list) else item.width for item in media] == [5, 2, 6, 7]


def test_no_messages_at_all():
    with pytest.raises(InvalidRequest, match="needs at least one message"):
        read()


@pytest.mark.parametrize("role", ["usr", "tool", None, "", ["user"], {}, 7])
def test_a_wrong_role_is_refused_with_the_right_ones(role):
    with pytest.raises(InvalidRequest, match=r"messages\[1\]: role must be one of system, user, assistant, got"):
        read(user("a"), {"role": role, "content": "b"})


def test_only_the_first_message_may_be_of_the_system():
    with pytest.raises(InvalidRequest, match=r"messages\[1\]: only the first message may have the role system"):
        read(user("a"), {"role": "system", "content": "b"})


def test_a_wrong_type_offers_the_nearest():
    with pytest.raises(
        InvalidRequest, match=r"messages\[0\].content\[1\]: type .*'image_ul'. Did you mean image_url\?"
    ):
        read(user("a", {"type": "image_ul", "image_ul": "x"}))


@pytest.mark.parametrize("part", [{}, {"type": "input_audio", "input_audio": {}}, {"picture": "x"}, {"type": ["text"]}])
def test_a_part_of_unknown_type_is_refused(part):
    with pytest.raises(InvalidRequest, match="type must be one of text, image_url, video_url, image_pil"):
        read(user(part))


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {}}, "image_url"),
        ({"type": "image_url"}, "image_url"),
        ({"type": "image_url", "image_url": 7}, "image_url"),
        ({"type": "text", "text": None}, "text"),
        ({"type": "video_url", "video_url": {"url": None}}, "video_url"),
    ],
)
def test_a_part_without_its_string_is_refused(part, kind):
    with pytest.raises(InvalidRequest, match=rf"messages\[0\].content\[0\]: {kind} needs a string, got "):
        read(user(part))


@pytest.mark.parametrize("value", ["cat.png", 7, None])
def test_image_pil_needs_a_picture(value):
    with pytest.raises(InvalidRequest, match="image_pil needs a PIL image"):
        read(user({"type": "image_pil", "image_pil": value}))


@pytest.mark.parametrize("value", ["film.mp4", 7, None, ["frame.png"]])
def test_video_frames_need_a_list_of_pictures(value):
    with pytest.raises(InvalidRequest, match="video_frames needs a list of PIL images"):
        read(user({"type": "video_frames", "video_frames": value}))


@pytest.mark.parametrize(
    "messages",
    [["hi"], [7], [None], [{"role": "user", "content": 7}], [user(7)], [user(None)], [user(["a"])], "hi"],
    ids=repr,
)
def test_messages_of_a_wrong_shape_are_refused(messages):
    with pytest.raises(InvalidRequest, match=r"messages"):
        read_messages(messages, READER)


class NoFetch(MediaAccess):
    def fetch(self, url: str, *args) -> bytes:
        pytest.fail(f"fetched {url}")


@pytest.mark.parametrize(("kind", "limit"), [("image", 4), ("video", 1), ("image", 0)])
def test_limits_hold_before_anything_is_fetched(kind, limit):
    reader = MediaReader(access=NoFetch(), limits={kind: limit})
    messages = [user({f"{kind}_url": "http://pictures.example/a"}) for _ in range(limit + 1)]
    with pytest.raises(InvalidRequest) as caught:
        read_messages(messages, reader)
    assert str(caught.value).startswith(f"At most {limit} {kind}(s) may be provided in one prompt.")
    assert str(limit + 1) in str(caught.value)


def test_bad_parts_are_found_before_anything_is_fetched():
    with pytest.raises(InvalidRequest, match="type must be one of"):
        read_messages([user({"image_url": "http://pictures.example/a"}, {"type": "x"})], MediaReader(access=NoFetch()))


def test_as_many_as_the_limit_are_fine():
    reader = MediaReader(limits={"image": 2})
    assert len(read(user({"image_url": picture_url()}, {"image_url": picture_url()}), reader=reader)[1]) == 2


def test_picture_limits_reach_the_reader():
    with pytest.raises(InvalidMedia, match="the limit is 10"):
        read(user({"image_url": picture_url()}), reader=MediaReader(image_limits=ImageLimits(max_pixels=10)))


def test_a_video_sent_as_a_picture_is_refused():
    with pytest.raises(InvalidMedia, match="is not a picture"):
        read(user({"image_url": video_url()}))
