"""Data URLs as RFC 2397 allows them and as careless senders write them; what is left over is named."""

from __future__ import annotations

import base64
import textwrap
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.inputs.pictures import noise as picture
from tests.inputs.pictures import saved
from tilewise.errors import Cancelled, InvalidMedia
from tilewise.inputs.media.fetch import _PIECE, DataUrl, MediaAccess
from tilewise.inputs.media.limits import MediaBudget, MediaLimits
from tilewise.inputs.media.reader import MediaPart, MediaReader

DATA = bytes(range(256)) + b"\xfb\xef\xff"  # + and / in base64, and padding
TEXT = base64.b64encode(DATA).decode()
WIDE = "\r\n".join(textwrap.wrap(TEXT, 76))
HEADS = [
    "data:image/png;base64,", "DATA:IMAGE/PNG;BASE64,", "data:image/png;charset=utf-8;base64,", "data:;base64,",
    "data:image/png; base64,", "data:image/jpeg;name=a.jpg;Base64 ,", "Data:base64;base64,", " data:image/png;base64,",
    'data:text/plain;charset="utf-8";base64,',
]  # fmt: skip
BODIES = {
    "as it should be": TEXT,
    "lines of 76": WIDE,
    "lines of 64, tabs": "\n\t".join(textwrap.wrap(TEXT, 64)),
    "a line break at the end": f"{TEXT}\n",
    "spaces": " ".join(textwrap.wrap(TEXT, 5)),
    "no padding": TEXT.rstrip("="),
    "one of two paddings": TEXT.rstrip("=") + "=",
    "url-safe": base64.urlsafe_b64encode(DATA).decode(),
    "url-safe without padding": base64.urlsafe_b64encode(DATA).decode().rstrip("="),
    "percent-encoded": quote(TEXT, safe=""),
    "percent-encoded lines, small letters":
    WIDE.replace("\r\n", "%0d%0a").replace("+", "%2b").replace("/", "%2f").replace("=", "%3d"),
    "every character percent-encoded": "".join(f"%{ord(letter):02X}" for letter in TEXT),
}  # fmt: skip


def fetch(url: str, **limits) -> bytes:
    return MediaAccess(limits=MediaLimits(**limits)).fetch(url)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_spellings_of_the_same_file(head, body):
    assert fetch(head + body) == DATA


@pytest.mark.parametrize(
    ("url", "data"),
    [
        ("data:,A%20brief%20note", b"A brief note"),  # RFC 2397's own
        ("data:text/plain,hello", b"hello"),
        ("data:image/png,%89PNG", b"\x89PNG"),
        ("data:text/plain;charset=utf-8,%C3%A9 é %zz%", "é é %zz%".encode()),
        ("data:;base64,", b""),
        ("data:,", b""),
        ("data:image/svg+xml,<svg a=\"1,2\"/>", b'<svg a="1,2"/>'),
    ],
)  # fmt: skip
def test_data_without_base64(url, data):
    assert fetch(url) == data


@pytest.mark.parametrize("url", ["data:", "data:image/png", "data:image/png;base64", "data:" + "x" * 2000 + ",a"])
def test_a_url_without_a_comma(url):
    with pytest.raises(InvalidMedia, match="needs a comma between its type and its data, as in data:image/png;base64"):
        fetch(url)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("ab*=", r"character 3 of its data is '\*'"),
        ("QUJD\nQUJ\x00", r"character 9 of its data is '\\x00'"),
        ("QUJD%", "character 5 of its data is '%'"),
        ("QUJD%4", "character 5 of its data is '%'"),
        ("QUJD%2A", r"'\*' is character 5 of its data"),
        ("QUJD%E9", "is character 5 of its data"),
        ("图片图片", r"character 1 of its data is '\\u56fe'"),
        ("QUé", r"character 3 of its data is '\\xe9'"),
        ("====", r"end with 4 padding characters \(=\), at most 2 can be"),
        ("QUI=QUI=", r"padding \(=\) stands in the middle, at character 4"),
        ("QUJDQ", "have 5 characters, one too many or some too few"),
        ("QUJD,QUJD", "character 5 of its data is ','"),
    ],
)
def test_what_is_no_base64_is_named_with_its_place(body, fault):
    with pytest.raises(InvalidMedia, match=f"not valid base64: .*{fault}") as caught:
        fetch(f"data:image/png;base64,{body}")
    assert len(str(caught.value)) < 200


def test_a_plus_that_became_a_space_is_guessed():
    with pytest.raises(InvalidMedia, match=r"a \+ may have become a space"):
        fetch("data:image/png;base64,QUJ QUJDQU")


@pytest.mark.parametrize("body", [TEXT, WIDE, quote(TEXT, safe=""), TEXT.rstrip("=")])
def test_every_spelling_has_the_same_limit(body):
    assert fetch(f"data:;base64,{body}", file_bytes=len(DATA), request_bytes=len(DATA)) == DATA
    for limits in ({"file_bytes": len(DATA) - 1}, {"request_bytes": len(DATA) - 1}):
        with pytest.raises(InvalidMedia, match=f"{len(DATA)} bytes or more, the limit is {len(DATA) - 1}"):
            fetch(f"data:;base64,{body}", **limits)


@pytest.mark.parametrize("filler", [" ", "%20", "A", "="])
@pytest.mark.parametrize("head", ["data:;base64,", "data:,"])
def test_endless_text_is_refused_before_it_is_copied(monkeypatch, head, filler):
    monkeypatch.setattr("tilewise.inputs.media.fetch._percent_decoded", lambda *args: pytest.fail("copied"))
    monkeypatch.setattr("tilewise.inputs.media.fetch._decode_leniently", lambda *args: pytest.fail("copied"))
    with pytest.raises(InvalidMedia, match=r"the data URL has .* bytes or more, the limit is 100"):
        fetch(f"{head}{filler * 1000}A", file_bytes=100)


def test_who_leaves_does_not_wait_for_percent_decoding():
    budget = MediaBudget()
    budget.cancel()
    with pytest.raises(Cancelled):
        DataUrl.of("data:,%41").decode(budget)


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("text", ["%41%42", "%%41%", "A%4", "%"])
def test_escapes_across_pieces(shift, text):
    """Percent-decoding goes piece by piece; none may end within an escape."""
    body = "x" * (_PIECE - shift) + text + "y" * _PIECE + text
    one = {"%41%42": b"AB", "%%41%": b"%A%", "A%4": b"A%4", "%": b"%"}[text]
    wanted = b"x" * (_PIECE - shift) + one + b"y" * _PIECE + one
    assert DataUrl.of(f"data:,{body}").decode(MediaBudget()) == wanted


@given(
    data=st.binary(max_size=80), width=st.integers(1, 30), safe=st.booleans(), escape=st.booleans(), bare=st.booleans()
)
@example(b"\xff\xff", 1, True, True, True)
def test_whatever_is_encoded_comes_back(data, width, safe, escape, bare):
    text = (base64.urlsafe_b64encode if safe else base64.b64encode)(data).decode()
    text = "\n".join(textwrap.wrap(text.rstrip("=") if bare else text, width))
    assert fetch(f"data:x/y;a=b;base64,{quote(text) if escape else text}") == data


@given(st.text(max_size=40))
def test_random_text_is_decoded_or_refused(body):
    for head in ("data:,", "data:;base64,"):
        try:
            fetch(head + body)
        except InvalidMedia:
            continue


FRAMES = [saved(picture(), "JPEG") for _ in range(40)]


@pytest.mark.parametrize("head", ["data:video/jpeg;base64,", "DATA:Video/JPEG;x=y;BASE64,"])
def test_every_listed_frame_is_kept(head):
    """`num_frames` of the server chooses frames of a film; these were chosen by whoever listed them."""
    listed = ",".join(base64.b64encode(frame).decode() for frame in FRAMES)
    frames = MediaReader().timed().video(MediaPart(head + listed, "video"))
    assert len(frames) == 40
