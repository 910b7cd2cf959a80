"""Downloads that end: deadlines, clients that leave, retries, redirects, and pages where pictures should be."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from tests.inputs.media.loopback import BODY, answers
from tilewise.errors import Cancelled, InvalidMedia
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.limits import MediaBudget, MediaLimits

SLOW = ("silent", "stall", "drip")


def fetch(url: str, kind="image", budget: MediaBudget | None = None, **limits) -> bytes:
    access = MediaAccess(allow_private_addresses=True, limits=MediaLimits(**{"retries": 0, **limits}))
    return access.fetch(url, kind, budget or MediaBudget(access.limits))


@contextlib.contextmanager
def leaving_at(event: threading.Event, retries: int = 0) -> Iterator[MediaBudget]:
    """A budget that is cancelled when something happens; its deadline is far away."""
    budget = MediaBudget(MediaLimits(image_seconds=60, retries=retries))
    thread = threading.Thread(target=lambda: event.wait(20) and budget.cancel())
    thread.start()
    try:
        yield budget
    finally:
        event.set()
        thread.join()


@pytest.mark.parametrize("answer", SLOW)
def test_who_leaves_does_not_wait_for_a_slow_server(server, base, answer):
    with leaving_at(server.reached) as budget, pytest.raises(Cancelled):
        fetch(f"{base}/{answer}", budget=budget)


@pytest.mark.parametrize("answer", SLOW)
@pytest.mark.parametrize(
    ("kind", "limit"), [("image", "VLLM_IMAGE_FETCH_TIMEOUT"), ("video", "VLLM_VIDEO_FETCH_TIMEOUT")]
)
def test_a_fetch_has_a_deadline_however_steadily_it_drips(base, answer, kind, limit):
    seconds = {"image_seconds": 60, "video_seconds": 60, f"{kind}_seconds": 0.4}
    with pytest.raises(InvalidMedia, match=rf"takes longer than 0\.4 s, the limit: use a faster host.*{limit}"):
        fetch(f"{base}/{answer}", kind, **seconds)


def test_redirects_share_one_deadline(server, base):
    with pytest.raises(InvalidMedia, match=r"takes longer than 0\.4 s"):
        MediaAccess(allow_private_addresses=True, max_redirects=100, limits=MediaLimits(image_seconds=0.4)).fetch(
            f"{base}/slow_hop?1"
        )
    assert len(server.seen) > 1


@pytest.fixture
def mute():
    """A port that is open, and where nobody ever speaks."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_handshake_that_never_ends(mute):
    with pytest.raises(InvalidMedia, match=r"takes longer than 0\.4 s"):
        fetch(f"https://127.0.0.1:{mute.getsockname()[1]}/", image_seconds=0.4)


def test_who_leaves_does_not_wait_for_a_handshake(mute):
    accepted = threading.Event()
    connections = []
    threading.Thread(target=lambda: (connections.append(mute.accept()), accepted.set()), daemon=True).start()
    with leaving_at(accepted) as budget, pytest.raises(Cancelled):
        fetch(f"https://127.0.0.1:{mute.getsockname()[1]}/", budget=budget)
    connections[0][0].close()


@pytest.fixture
def full():
    """A port that takes no more connections and refuses none."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening, contextlib.ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def test_a_connection_that_never_comes_about(full):
    with pytest.raises(InvalidMedia, match=r"takes longer than|no answer"):
        fetch(f"http://127.0.0.1:{full}/", image_seconds=0.4)


@pytest.fixture
def slow_names(monkeypatch):
    asked, release = threading.Event(), threading.Event()

    def resolve(*args, **options):
        asked.set()
        release.wait(20)
        raise socket.gaierror(-3, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    yield asked
    release.set()


def test_who_leaves_does_not_wait_for_a_name(slow_names):
    with leaving_at(slow_names) as budget, pytest.raises(Cancelled):
        fetch("http://pictures.example/", budget=budget)


def test_a_name_that_is_looked_up_for_too_long(slow_names):
    with pytest.raises(InvalidMedia, match=r"takes longer than 0\.2 s"):
        fetch("http://pictures.example/", image_seconds=0.2)


@pytest.mark.parametrize("answer", ["flaky", "dropped"])
def test_what_fails_for_a_while_is_tried_again(server, base, answer):
    assert fetch(f"{base}/{answer}?2", retries=2) == BODY
    assert len(server.seen) == 3


def test_retries_end(server, base):
    with pytest.raises(InvalidMedia, match="answered with HTTP status 503"):
        fetch(f"{base}/flaky?9", retries=1)
    assert len(server.seen) == 2


@pytest.mark.parametrize("status", [400, 404, 429])
def test_a_client_s_error_is_not_tried_again(server, base, status):
    with pytest.raises(InvalidMedia, match=f"HTTP status {status}"):
        fetch(f"{base}/status?{status}", retries=3)
    assert len(server.seen) == 1


def test_retries_end_with_the_deadline(base):
    with pytest.raises(InvalidMedia, match=r"takes longer than 0\.3 s"):
        fetch(f"{base}/flaky?999", retries=50, image_seconds=0.3)


def test_who_leaves_does_not_wait_for_the_next_try(server, base):
    with leaving_at(server.reached, retries=50) as budget, pytest.raises(Cancelled):
        fetch(f"{base}/flaky?999", budget=budget)


def test_a_name_that_has_moved_to_a_private_address_is_refused_when_tried_again(server, monkeypatch):
    answers(monkeypatch, "127.0.0.1", "127.0.0.2")
    monkeypatch.setattr("tilewise.inputs.media.hosts.is_public", lambda number: number != "127.0.0.2")
    with pytest.raises(InvalidMedia, match=r"127\.0\.0\.2, which is not a public address: refused"):
        MediaAccess().fetch(f"http://pictures.example:{server.server_port}/flaky?1")
    assert len(server.seen) == 1


def test_the_next_address_is_tried_when_one_refuses(server, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, 0)) for number in ("127.0.0.3", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    assert fetch(f"http://pictures.example:{server.server_port}/picture") == BODY


def test_certificates_are_checked(server):
    """A plain server is none of TLS; what matters is that the error is one of the connection, and named."""
    with pytest.raises(InvalidMedia, match=r"cannot be fetched: TLS failed: the host [^_\[]*; check the address"):
        fetch(f"https://127.0.0.1:{server.server_port}/picture")


def test_the_context_of_tls_checks_names_and_certificates():
    from tilewise.inputs.media.connection import _ssl_context

    assert _ssl_context().verify_mode == ssl.CERT_REQUIRED
    assert _ssl_context().check_hostname


def test_the_media_of_a_request_share_its_bytes(base):
    budget = MediaBudget(MediaLimits(request_bytes=200))
    assert fetch(f"{base}/picture", budget=budget) == BODY
    with pytest.raises(InvalidMedia, match=r"have 280 bytes or more, the limit is 200.*REQUEST_DOWNLOAD_SIZE_MB"):
        fetch(f"{base}/picture", budget=budget)


def test_what_is_streamed_counts_as_it_comes(base):
    with pytest.raises(InvalidMedia, match="the limit is 2500: send fewer or smaller files"):
        fetch(f"{base}/streamed?1000000", request_bytes=2500)


@pytest.mark.parametrize(
    ("host", "there"),
    [("hub.example", "http://hub.example:{}/page?/resolve/main/a.png"), ("127.0.0.1", "127.0.0.1:{}/page?/resolve/")],
)
def test_a_hub_s_page_about_a_picture_gets_the_address_of_the_picture(server, monkeypatch, host, there):
    answers(monkeypatch, "127.0.0.1")
    with pytest.raises(InvalidMedia) as caught:
        fetch(f"http://{host}:{server.server_port}/page?/blob/main/a.png")
    assert there.format(server.server_port) in str(caught.value)


def test_pages_are_known_by_their_content(base):
    with pytest.raises(InvalidMedia, match=r"Content-Type: image/png\): it is an HTML page"):
        fetch(f"{base}/disguised")


@pytest.mark.parametrize("encoding", ["gzip", "x", "two", "tail", "deflate", "raw"])
def test_what_comes_compressed_is_unpacked(base, encoding):
    budget = MediaBudget()
    assert fetch(f"{base}/encoded?{encoding}", budget=budget) == BODY
    assert budget.bytes_taken == len(BODY)


@pytest.mark.parametrize(
    ("encoding", "says"),
    [("gzip-20", "came as gzip that is cut short: send the whole file"), ("damaged", "came as gzip that is damaged"),
     ("many", "came as gzip that is damaged"),
     ("br", "came in the Content-Encoding 'br', .* gzip and deflate are read")],
)  # fmt: skip
def test_what_cannot_be_unpacked_is_named(base, encoding, says):
    with pytest.raises(InvalidMedia, match=says):
        fetch(f"{base}/encoded?{encoding}")


@pytest.mark.parametrize("limits", [{"file_bytes": 100_000}, {"request_bytes": 100_000}])
def test_what_is_compressed_is_held_to_the_limit_as_it_grows(base, limits):
    with pytest.raises(InvalidMedia, match=r"1\d{5} bytes or more, the limit is 100000"):
        fetch(f"{base}/packed", **limits)


@pytest.mark.parametrize(
    ("answer", "says"),
    [("no_http", "the host answered with something that is no HTTP"),
     ("no_chunks", "the host answered with something that is no HTTP"),
     ("short", "the connection was closed before the whole file had come"),
     ("dropped?99", "the host closed the connection without an answer")],
)  # fmt: skip
def test_a_broken_answer_is_a_sentence_without_what_the_host_sent(base, answer, says):
    with pytest.raises(InvalidMedia) as caught:
        fetch(f"{base}/{answer}")
    assert str(caught.value) == (
        f"{base}/{answer} cannot be fetched: {says}; check the address and the host, or send the file as a data URL."
    )
