"""Messages of the OpenAI form: every spelling of a content part, and counts checked before anything is fetched."""

import pytest
from PIL import Image

from tests.inputs.pictures import data_url, picture_url, saved, user, video_url
from tilewise.errors import Cancelled, InvalidMedia, InvalidRequest
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.images import ImageLimits, Opening
from tilewise.inputs.media.limits import MediaBudget, MediaLimits
from tilewise.inputs.media.reader import MediaOptions, MediaReader
from tilewise.inputs.media.tiling import LimitedPicture
from tilewise.inputs.media.video import FrameChoice
from tilewise.inputs.messages import read_messages
from tilewise.inputs.pieces import MediaPlace, Message

READER = MediaReader(frames=FrameChoice(2))


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
    assert read(user("a", {"type": "text", "text": "b"}))[0] == [Message("user", "a\nb", parts=("a", "b"))]


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
    assert parsed == [Message("user", "What?", images=1, parts=("What?", MediaPlace("image")))]
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
    assert parsed == [Message("user", "Why?", videos=(2,), parts=("Why?", MediaPlace("video")))]
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


@pytest.mark.parametrize("role", ["usr", "function", None, "", ["user"], {}, 7])
def test_a_wrong_role_is_refused_with_the_right_ones(role):
    with pytest.raises(InvalidRequest, match=r"messages\[1\]: role must be one of system, user, .*, got"):
        read(user("a"), {"role": role, "content": "b"})


def test_systems_and_developers_may_speak_anywhere_and_others_as_the_template_allows():
    roles = ["developer", "system", "user", "system", "critic 2"]
    parsed, _ = read(*({"role": role, "content": "a"} for role in roles))
    assert [message.role for message in parsed] == ["system", "system", "user", "system", "critic 2"]


@pytest.mark.parametrize("role", ["a\nb", "<|im_end|>", "<think>", "{}", "a" * 65, "é"])
def test_a_role_of_ones_own_is_a_plain_name(role):
    with pytest.raises(InvalidRequest, match="a name of letters and digits"):
        read({"role": role, "content": "a"})


def test_the_order_of_parts_is_kept_where_it_matters():
    first = read(user({"image_url": picture_url(9)}, "a"))[0][0]
    mixed = read(user("a", {"image_url": picture_url(9)}, "b", {"video_url": video_url()}))[0][0]
    assert first == Message("user", "a", images=1)
    assert mixed.parts == ("a", MediaPlace("image"), "b", MediaPlace("video"))


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
    ("part", "says"),
    [
        ({"type": "image_url", "image_url": {}}, "image_url needs a URL, got NoneType; or a uuid"),
        ({"type": "image_url"}, "image_url needs a URL, got NoneType"),
        ({"type": "image_url", "image_url": 7}, "image_url needs a URL, got int"),
        ({"type": "text", "text": None}, "text must be a string, got NoneType"),
        ({"type": "video_url", "video_url": {"url": None}}, "video_url needs a URL, got NoneType"),
    ],
)
def test_a_part_without_its_string_is_refused(part, says):
    with pytest.raises(InvalidRequest, match=rf"messages\[0\].content\[0\]: {says}"):
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
        read(user({"image_url": picture_url()}), reader=MediaReader(opening=Opening(ImageLimits(max_pixels=10))))


def test_a_video_sent_as_a_picture_is_refused():
    with pytest.raises(InvalidMedia, match="is not a picture"):
        read(user({"image_url": video_url()}))


CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"where":  "left"}'}}


def test_calls_and_results_of_tools():
    messages, media = read(
        user("a"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [CALL, {"function": {"name": "b", "arguments": {"c": "图"}}}],
        },
        {"role": "tool", "content": [{"type": "text", "text": "a wall"}]},
    )
    assert messages[1].text == ""
    assert messages[1].calls == (
        '{"name": "look", "arguments": {"where":  "left"}}',
        '{"name": "b", "arguments": {"c": "图"}}',
    )
    assert (messages[2].role, messages[2].text, media) == ("tool", "a wall", [])


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "only the assistant has tool_calls"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "tool_calls must be a list, got dict"),
        ({"role": "assistant", "tool_calls": [{"function": "look"}]}, r"tool_calls\[0\]: it needs a function"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}, "needs a function with a name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}, "text of a JSON object"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}]}, "JSON object"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": []}}]}, "JSON object"),
    ],
)
def test_calls_that_are_none(message, says):
    with pytest.raises(InvalidRequest, match=says):
        read(message)


def frame_list(*widths: int) -> str:
    return "data:video/jpeg;base64," + ",".join(picture_url(width).partition(",")[2] for width in widths)


def test_a_list_of_pictures_is_a_video():
    parsed, media = read(user({"video_url": frame_list(4, 5)}))
    assert parsed[0].videos == (2,)
    assert [frame.width for frame in media[0]] == [4, 5]


def test_frames_of_a_list_are_all_kept():
    """Whoever listed them has chosen them; the reader's two frames are of films."""
    _, media = read(user({"video_url": frame_list(*range(4, 11))}), reader=MediaReader(frames=FrameChoice(2)))
    assert [frame.width for frame in media[0]] == list(range(4, 11))


def test_frames_of_a_list_are_chosen_if_the_request_itself_says_how_many():
    reader = MediaReader().timed(MediaOptions(num_frames=2))
    _, media = read_messages([user({"video_url": frame_list(*range(4, 11))})], reader)
    assert [frame.width for frame in media[0]] == [4 + index for index in FrameChoice(2).indices(7)]


def test_a_frame_that_is_none_is_named():
    with pytest.raises(InvalidMedia, match="frame 2 of the video is not a picture that can be read"):
        read(user({"video_url": frame_list(4) + ",aGVsbG8="}))


@pytest.mark.parametrize("tail", ["", ",", ",,,"])
def test_empty_frames_are_refused(tail):
    with pytest.raises(InvalidMedia, match="is not a picture"):
        read(user({"video_url": f"data:video/jpeg;base64,{tail}"}))


def test_an_ordinary_mp4_is_no_list():
    with pytest.raises(InvalidMedia, match="not valid base64"):
        read(user({"video_url": video_url().replace("video/avi", "video/mp4") + ",aGVsbG8="}))


def test_detail_has_no_effect_unless_the_server_gives_it_one():
    _, media = read(user({"image_url": {"url": picture_url(), "detail": "low"}}))
    assert isinstance(media[0], Image.Image)


@pytest.mark.parametrize(
    ("detail", "most"), [({"detail": "low"}, 1), ({"detail": "high"}, None), ({"detail": "auto"}, 6), ({}, 6)]
)
def test_detail_limits_the_tiles_of_its_picture(detail, most):
    reader = MediaReader(detail_tiles={"low": 1, "auto": 6})
    _, media = read(user({"image_url": {"url": picture_url(), **detail}}), reader=reader)
    assert (media[0].max_tiles if isinstance(media[0], LimitedPicture) else None) == most


@pytest.mark.parametrize("detail", ["lowest", 1, [], {}])
def test_a_wrong_detail_is_refused(detail):
    with pytest.raises(InvalidRequest, match="detail must be one of auto, low, medium, high, original, got"):
        read(user({"image_url": {"url": picture_url(), "detail": detail}}))


def limited(**limits) -> MediaReader:
    return MediaReader(access=MediaAccess(limits=MediaLimits(**limits)), frames=FrameChoice(2)).timed()


def test_pixels_of_a_request_are_counted_over_all_its_media():
    picture = {"image_url": picture_url(5)}  # 5 x 4 pixels of 4 bytes
    read(user(picture, picture), reader=limited(request_decoded_bytes=160))
    with pytest.raises(InvalidMedia, match=r"have 240 bytes of pixels or more, the limit is 160"):
        read(user(picture, picture), user(picture), reader=limited(request_decoded_bytes=160))


def test_frames_count_as_pictures_do():
    with pytest.raises(InvalidMedia, match=r"have 2048 bytes of pixels or more, the limit is 2047"):
        read(user({"video_url": video_url()}), reader=limited(request_decoded_bytes=2047))


def test_nothing_is_opened_for_a_client_that_has_left():
    reader = MediaReader(access=NoFetch())
    reader.budget.cancel()
    with pytest.raises(Cancelled):
        read(
            user({"image_url": data_url("image/png", saved(Image.new("L", (4, 4))))}),
            reader=MediaReader(budget=reader.budget),
        )


def test_each_request_has_a_budget_of_its_own():
    reader = limited(request_bytes=100)
    first, second = reader.timed(), reader.timed()
    first.budget.take_bytes(100)
    first.budget.cancel()
    second.budget.take_bytes(100)


def test_an_event_ends_the_request_that_it_belongs_to():
    budget = MediaBudget()
    reader = MediaReader().timed(cancelled=budget.cancelled)
    budget.cancel()
    with pytest.raises(Cancelled):
        read(user({"image_url": picture_url()}), reader=reader)


@pytest.mark.parametrize(("kind", "bad"), [("image_url", 2), ("video_url", 1)])
def test_the_error_of_a_medium_says_which_one_it_is(kind, bad):
    good = picture_url() if kind == "image_url" else video_url()
    urls = [data_url("image/png", b"hello") if number == bad else good for number in range(3)]
    parts = [{"type": kind, kind: {"url": url}} for url in urls]
    with pytest.raises(
        InvalidMedia, match=rf"^messages\[1\]\.content\[{bad}\]: the (picture|video) is not a"
    ) as caught:
        read_messages([user("Hi"), user(*parts)], MediaReader())
    assert caught.value.param == f"messages[1].content[{bad}]"


def test_a_video_of_no_frames_in_a_message_is_refused():
    with pytest.raises(
        InvalidMedia, match=r"messages\[0\]\.content\[0\]: video_frames has no frames: send at least one"
    ):
        read_messages([user({"type": "video_frames", "video_frames": []})], MediaReader())


@pytest.mark.parametrize(
    "part",
    [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "a"}],
)
def test_texts_go_by_the_names_of_the_responses_api_too(part):
    assert read(user(part))[0] == [Message("user", "a")]


def test_keys_that_nothing_reads_are_passed_over():
    message = {"role": "user", "name": "x", "content": [{"text": "a", "cache_control": {}}, {"type": "thinking"}]}
    assert read(message)[0] == [Message("user", "a")]
