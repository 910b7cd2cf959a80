"""Random URLs and random files: refused or read, never anything else, and never a connection that was not checked."""

from __future__ import annotations

import errno
import re
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inputs import pictures
from tilewise.errors import InvalidMedia
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.hosts import is_public
from tilewise.inputs.media.limits import MediaLimits
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.media.video import FrameChoice
from tilewise.inputs.messages import read_messages

LIMITS = MediaLimits(retries=0, image_seconds=20, decode_seconds=20)
NUMBERS = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "8.8.8.8", "93.184.216.34", "::1", "fd00::1", "2606:4700::1"]
PIECES = st.sampled_from(
    [
        "http", "https", "HTTP", "file", "data", "ftp", ":", "//", "/", "\\", "@", "#", "?", "%", "%40", "%2f", "%00",
        "..",
        "[", "]", "[::1]", "[::ffff:127.0.0.1]", "localhost", "a.example", "127.0.0.1", "0x7f.1", "2130706433", ":80",
        ":0", ":99999", ".", "。", "１", "\t", "\n", "\r\n", " ", "\x00", "é", "ß", "\ud800", "xn--", "base64,", ";",
    ]
)  # fmt: skip
URLS = st.builds("".join, st.lists(PIECES | st.text(max_size=3), max_size=12))
HTTP_URLS = st.builds("{}://{}".format, st.sampled_from(["http", "https"]), URLS)


class Network:
    """A resolver that says anything, and a record of what was connected to."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.asked: list[str] = []
        self.reached: list[str] = []

    def resolve(self, host, *args, **options):
        self.asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, 0)) for number in self.answers]

    def connect(self, connection, address) -> int:
        self.reached.append(address[0])
        return errno.ECONNREFUSED


@pytest.fixture
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(socket, "getaddrinfo", network.resolve)
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *args: network.connect(*args))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("connected"))
    return network


FIXED = settings(max_examples=300, suppress_health_check=["function_scoped_fixture"])


@pytest.fixture
def attempt(network):
    def fetch(url: str, numbers: list[str], **access) -> None:
        network.answers, network.asked, network.reached = numbers, [], []
        with pytest.raises(InvalidMedia):
            MediaAccess(limits=LIMITS, **access).fetch(url)

    return fetch


@FIXED
@given(url=URLS | HTTP_URLS, numbers=st.lists(st.sampled_from(NUMBERS), max_size=3))
def test_random_urls_reach_nothing_but_public_addresses(network, attempt, url, numbers):
    if url.lower().startswith("data:") and ";base64," in url:
        return
    attempt(url, numbers)
    assert set(network.reached) <= set(numbers)
    if not all(map(is_public, numbers)):
        assert network.reached == []


@FIXED
@given(url=HTTP_URLS)
def test_random_urls_do_not_leave_the_allowed_domain(network, attempt, url):
    attempt(url, ["8.8.8.8"], allowed_media_domains=("a.example",))
    assert set(network.asked) <= {"a.example"}


FILES = [
    pictures.saved(pictures.noise(), "PNG"),
    pictures.saved(pictures.noise(), "JPEG"),
    pictures.saved(pictures.noise(), "WEBP"),
    pictures.saved(pictures.noise(), "GIF"),
    pictures.saved(pictures.noise(), "TIFF"),
    pictures.video(6),
    pictures.video(6, container_format="mp4"),
    pictures.video(6, codec="libx264", container_format="matroska"),
]
RANDOM = st.binary(max_size=300)


@st.composite
def mutated(draw) -> bytes:
    """A good file with some bytes changed, a piece doubled, left out or replaced, and perhaps cut short."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        piece = draw(st.sampled_from([bytes(data[place : place + length]) * 2, b"", b"\xff" * length, bytes(length)]))
        data[place : place + length] = piece
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it mends
@settings(max_examples=300)
@given(data=RANDOM | mutated(), kind=st.sampled_from(["image", "video"]))
def test_random_and_damaged_files_are_read_or_refused(data, kind):
    reader = MediaReader(MediaAccess(limits=LIMITS), frames=FrameChoice(3)).timed()
    url = pictures.data_url(f"{kind}/x", data)
    try:
        _, media = read_messages([pictures.user({f"{kind}_url": url})], reader)
    except InvalidMedia as error:
        text = str(error)
        assert not re.search(r"0x[0-9a-f]{5}| object at ", text)
        return
    assert 1 <= (len(media[0]) if kind == "video" else 1) <= 3


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200)
@given(frames=st.lists(RANDOM | mutated(), max_size=4))
def test_random_lists_of_frames_are_read_or_refused(frames):
    listed = ",".join(pictures.data_url("", frame).partition(",")[2] for frame in frames)
    reader = MediaReader(MediaAccess(limits=LIMITS)).timed()
    try:
        _, media = read_messages([pictures.user({"video_url": f"data:video/jpeg;base64,{listed}"})], reader)
    except InvalidMedia:
        return
    assert len(media[0]) == len(frames)
