"""Fetching media over a real loopback server, and everything that has to be refused before a connection is made."""

import base64
import errno
import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.inputs.media.loopback import BODY, LIMIT, answers
from tilewise.errors import InvalidMedia
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.limits import MediaLimits
from tilewise.inputs.media.reader import MediaPart, MediaReader

LIMITS = MediaLimits(file_bytes=LIMIT, retries=0)
OPEN = MediaAccess(allow_private_addresses=True, limits=LIMITS)
CLOSED = MediaAccess()


def test_fetch(base, server):
    assert OPEN.fetch(f"{base}/picture") == BODY
    assert server.seen == [("/picture", base.removeprefix("http://"), "identity")]


def test_beside_more_open_files_than_select_knows(base, server):
    """A server with a thousand connections still fetches: select() takes no descriptor above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with ExitStack() as files:
        while files.enter_context(Path(os.devnull).open()).fileno() < 1024:
            pass
        assert OPEN.fetch(f"{base}/picture") == BODY


def test_query_is_sent_and_fragment_is_not(base, server):
    OPEN.fetch(f"{base}/streamed?1#part")
    assert server.seen[0][0] == "/streamed?1"


@pytest.mark.parametrize("hops", [1, 3])
def test_redirects_are_followed(base, hops):
    assert OPEN.fetch(f"{base}/hop?{hops}") == BODY


def test_too_many_redirects_name_the_limit(base, server):
    with pytest.raises(InvalidMedia, match="more than 3 redirects; give the final address"):
        OPEN.fetch(f"{base}/hop?4")
    assert len(server.seen) == 4


@pytest.mark.parametrize("target", ["file:///etc/hostname", "data:,x", "ftp://127.0.0.1/x", "gopher://127.0.0.1/"])
def test_redirects_leave_http_never(base, target):
    with pytest.raises(InvalidMedia, match=r"must be either a HTTP, data or file URL|is not a valid URL"):
        OPEN.fetch(f"{base}/to?{target}")


def test_a_redirect_to_a_domain_that_is_not_allowed_is_refused(base, server):
    access = MediaAccess(allow_private_addresses=True, allowed_media_domains=("127.0.0.1",))
    with pytest.raises(InvalidMedia, match="allowed domains"):
        access.fetch(f"{base}/to?http://localhost:{server.server_port}/picture")
    assert [path for path, *_ in server.seen] == [f"/to?http://localhost:{server.server_port}/picture"]


def test_a_redirect_to_a_private_address_is_refused(base, server, monkeypatch):
    """The first address passes for public here; the one it redirects to does not."""
    monkeypatch.setattr("tilewise.inputs.media.hosts.is_public", lambda address: address != "127.0.0.2")
    with pytest.raises(InvalidMedia, match=r"127\.0\.0\.2, which is not a public address: refused"):
        MediaAccess().fetch(f"{base}/to?http://127.0.0.2:{server.server_port}/picture")
    assert len(server.seen) == 1


def test_a_declared_size_over_the_limit_is_refused(base):
    with pytest.raises(InvalidMedia, match="has 1001 bytes or more, the limit is 1000: send a smaller file"):
        OPEN.fetch(f"{base}/declared")


def test_an_undeclared_size_over_the_limit_is_cut_off(base):
    assert len(OPEN.fetch(f"{base}/streamed?10")) == LIMIT
    with pytest.raises(InvalidMedia, match="the limit is 1000"):
        OPEN.fetch(f"{base}/streamed?100000")


def test_compressed_answers_cannot_grow_past_the_limit(base):
    with pytest.raises(InvalidMedia):
        OPEN.fetch(f"{base}/packed")


@pytest.mark.parametrize("status", [204, 401, 404, 500, 503])
def test_other_status_codes_are_named(base, status):
    with pytest.raises(InvalidMedia, match=f"answered with HTTP status {status}"):
        OPEN.fetch(f"{base}/status?{status}")


def test_a_connection_cut_short_is_refused(base):
    with pytest.raises(InvalidMedia, match="cannot be fetched"):
        OPEN.fetch(f"{base}/short")


def test_a_closed_port_is_refused():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(
            InvalidMedia,
            match=r"cannot be fetched: there is no connection to 127\.0\.0\.1 port \d+ \(connection refused\); check",
        ):
            OPEN.fetch(f"http://127.0.0.1:{port}/x")


def test_a_web_page_instead_of_a_picture_gets_the_hint(base):
    with pytest.raises(InvalidMedia, match=r"Type: text/html\): it is an HTML page: use the address of the file"):
        MediaReader(OPEN).picture(MediaPart(f"{base}/page", "image"))


PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[fe80::1]",
    "[fd00:ec2::254]", "[2002:7f00:1::]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[::7f00:1]", "[fec0::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_addresses_that_are_not_public_are_refused_before_connecting(no_connection, host):
    with pytest.raises(InvalidMedia, match=r"which is not a public address: refused|cannot be resolved"):
        CLOSED.fetch(f"http://{host}/latest/meta-data")


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "LOCALHOST", "127.0.0.1."]
)
def test_other_spellings_of_loopback_are_refused_before_connecting(no_connection, host):
    with pytest.raises(InvalidMedia, match=r"which is not a public address: refused|cannot be resolved"):
        CLOSED.fetch(f"http://{host}/")


def test_credentials_do_not_hide_the_host(no_connection):
    with pytest.raises(InvalidMedia, match="a URL with credentials is not fetched; leave out what is before @"):
        CLOSED.fetch("http://example.com@127.0.0.1/")


def test_one_private_address_among_several_is_enough_to_refuse(no_connection, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(InvalidMedia, match=r"pictures\.example is at 10\.0\.0\.1, which is not a public address"):
        CLOSED.fetch("http://pictures.example/a.png")


def test_the_connection_goes_to_the_checked_address(monkeypatch):
    """The name would answer with a private address the second time; it is not asked again."""
    asked = answers(monkeypatch, "93.184.216.34", "127.0.0.1")
    targets = []

    def refuse(connection, address):
        targets.append(address)
        return errno.ECONNREFUSED

    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    with pytest.raises(InvalidMedia, match="cannot be fetched"):
        MediaAccess(limits=LIMITS).fetch("http://pictures.example:8080/a.png")
    assert asked == ["pictures.example"]
    assert targets == [("93.184.216.34", 8080)]


def test_a_name_is_looked_up_once_and_sent_as_the_host(server, monkeypatch):
    asked = answers(monkeypatch, "127.0.0.1")
    assert OPEN.fetch(f"http://pictures.example:{server.server_port}/picture") == BODY
    assert asked == ["pictures.example"]
    assert server.seen[0][1] == f"pictures.example:{server.server_port}"


def test_addresses_are_tried_in_the_resolver_s_order(server, monkeypatch):
    """The resolver puts first what this machine can reach; 100::1 is a black hole that sorts before it as text."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("100::1", 0, 0, 0)),
    ]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: found if host == "pictures.example" else real(host, *a, **o)
    )
    access = MediaAccess(allow_private_addresses=True)
    assert access.fetch(f"http://pictures.example:{server.server_port}/picture") == BODY


def test_a_name_that_does_not_resolve(monkeypatch):
    def fail(*args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(InvalidMedia, match=r"nowhere\.example: this host name cannot be resolved"):
        CLOSED.fetch("http://nowhere.example/")


def test_only_allowed_domains(base, no_connection):
    access = MediaAccess(allow_private_addresses=True, allowed_media_domains=("pictures.example",))
    with pytest.raises(InvalidMedia, match=r"allowed domains: \['pictures.example'\]. Input URL domain: 127.0.0.1"):
        access.fetch(f"{base}/picture")


@pytest.mark.parametrize("host", ["pictures.example.evil.test", "xpictures.example", "sub.pictures.example"])
def test_allowed_domains_are_exact(no_connection, host):
    access = MediaAccess(allowed_media_domains=("pictures.example",))
    with pytest.raises(InvalidMedia, match="allowed domains"):
        access.fetch(f"http://{host}/")


def test_an_allowed_domain_in_capitals_is_the_same_domain(server, monkeypatch):
    answers(monkeypatch, "127.0.0.1")
    access = MediaAccess(allow_private_addresses=True, allowed_media_domains=("pictures.example",))
    assert access.fetch(f"http://Pictures.Example:{server.server_port}/picture") == BODY


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("s3://bucket/a.png", "send a presigned https URL of it"),
        ("S3A://bucket/a.png", "send a presigned https URL of it"),
        ("gs://bucket/a.png", "send a presigned https URL of it"),
        ("abfss://container@account/a.png", "send a presigned https URL of it"),
        ("ftp://host/a.png", "put the file behind http or https"),
        ("blob:https://a.example/1", "send the file as a data URL"),
        ("picture.png", "put https:// or file:// before it"),
        ("iVBORw0KGgo" * 50, "put data:image/png;base64, before it"),
    ],
)
def test_addresses_of_other_places_get_a_remedy(no_connection, url, remedy):
    with pytest.raises(InvalidMedia, match=f"must be either a HTTP, data or file URL; .*{remedy}"):
        OPEN.fetch(url)


@pytest.mark.parametrize(
    "url", ["", "picture.png", "/etc/passwd", "ftp://host/a.png", "javascript:1", "HTTP", "http://"]
)
def test_other_schemes_are_refused(no_connection, url):
    with pytest.raises(InvalidMedia, match="must be either a HTTP, data or file URL"):
        OPEN.fetch(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://[v1.x]/", "http://127.0.0.1:1/\x01",
        "http://bücher.example/", "http://.example/", f"http://{'a' * 300}.example/", "http://127.0.0.1:1/\ud800",
        "http://127.0.0.1\x00.example/",
    ],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(monkeypatch, url):
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *args: errno.ECONNREFUSED)
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: real("127.0.0.1" if "cher" in host else host, *a, **o)
    )
    with pytest.raises(InvalidMedia):
        OPEN.fetch(url)


def test_a_redirect_to_an_address_that_is_none_is_refused(base):
    with pytest.raises(InvalidMedia):
        OPEN.fetch(f"{base}/to?http://[::1")


def test_long_urls_are_shortened_in_messages():
    with pytest.raises(InvalidMedia) as caught:
        OPEN.fetch("gopher://" + "x" * 5000)
    assert len(str(caught.value)) < 250


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("data", [b"", b"x", BODY, bytes(range(256))])
def test_data_urls(data):
    assert CLOSED.fetch(data_url(data)) == data


def test_data_urls_have_the_same_size_limit():
    assert OPEN.fetch(data_url(bytes(LIMIT - 1))) == bytes(LIMIT - 1)
    with pytest.raises(InvalidMedia, match=r"the data URL has .* bytes or more, the limit is 1000"):
        OPEN.fetch(data_url(bytes(LIMIT + 3)))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    (root / "a b.png").write_bytes(BODY)
    (root / "sub" / "c.png").write_bytes(b"c")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "d.png").write_bytes(b"d")
    (root / "way_out.png").symlink_to(tmp_path / "secret.png")
    (root / "way_in.png").symlink_to(root / "sub" / "c.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    return root


def local(root) -> MediaAccess:
    return MediaAccess(allowed_local_media_path=root, limits=LIMITS)


def test_files_are_closed_by_default(root):
    with pytest.raises(InvalidMedia, match="Cannot load local files without `--allowed-local-media-path`"):
        CLOSED.fetch(f"file://{root}/sub/c.png")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("sub/c.png", b"c"),
        ("a%20b.png", BODY),
        ("sub/../sub/c.png", b"c"),
        ("sub/%2e%2e/sub/c.png", b"c"),
        ("way_in.png", b"c"),
    ],
)
def test_files_below_the_root(root, name, data):
    assert local(root).fetch(f"file://{root}/{name}") == data


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "%2e%2e/secret.png", "..%2fsecret.png", "sub/../../secret.png", "way_out.png", "../media2/d.png"],
)
def test_files_outside_the_root_are_refused(root, name):
    with pytest.raises(InvalidMedia, match="must be a subpath of `--allowed-local-media-path`"):
        local(root).fetch(f"file://{root}/{name}")


def test_whether_a_file_outside_exists_is_not_revealed(root):
    messages = []
    for name in ("secret.png", "nothing.png"):
        with pytest.raises(InvalidMedia) as caught:
            local(root).fetch(f"file://{root}/../{name}")
        messages.append(str(caught.value).replace(name, "it"))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", ["gone.png", "sub", "loop.png", "a" * 300 + ".png", "a%00.png"])
def test_files_that_are_missing_or_none(root, name):
    with pytest.raises(InvalidMedia):
        local(root).fetch(f"file://{root}/{name}")


def test_a_folder_is_no_missing_file(root):
    with pytest.raises(InvalidMedia, match="sub is no regular file"):
        local(root).fetch(f"file://{root}/sub")


def test_a_missing_file_below_the_root_is_named(root):
    with pytest.raises(InvalidMedia, match=r"gone\.png: no such file"):
        local(root).fetch(f"file://{root}/gone.png")


def test_large_files_are_refused_with_the_limit(root):
    (root / "large.png").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(InvalidMedia, match=r"large\.png has 1001 bytes or more, the limit is 1000"):
        local(root).fetch(f"file://{root}/large.png")


def test_data_urls_are_not_remembered_by_the_parser_of_urls():
    """urllib keeps what it has taken apart, and these are whole files."""
    CLOSED.fetch(data_url(BODY))
    before = urlsplit.cache_info().misses  # type: ignore[attr-defined]
    CLOSED.fetch(data_url(BODY + b"!"))
    assert urlsplit.cache_info().misses == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("host", ["otherhost", "127.0.0.1", "localhost.example", "user@localhost"])
def test_a_file_of_another_host_is_refused(root, host):
    with pytest.raises(InvalidMedia, match=f"names a file of the server alone, got the host '{host}': write file:///"):
        local(root).fetch(f"file://{host}{root}/sub/c.png")


@pytest.mark.parametrize("host", ["", "localhost", "LOCALHOST"])
def test_a_file_of_this_host_is_read(root, host):
    assert local(root).fetch(f"file://{host}{root}/sub/c.png") == local(root).fetch(f"file://{root}/sub/c.png")


@pytest.mark.parametrize("url", ["file:///" + "a" * 9000, "http://a.example/" + "a" * 9000])
def test_urls_have_a_length(no_connection, tmp_path, url):
    with pytest.raises(InvalidMedia, match="characters is too long, the limit is 8192"):
        local(tmp_path).fetch(url)
