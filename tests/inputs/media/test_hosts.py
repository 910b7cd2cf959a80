"""`allowed_media_domains`: hosts, addresses and networks, private ones too, and that naming one opens no other."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.inputs.media.loopback import BODY, answers
from tilewise.config import EngineConfig
from tilewise.entrypoints.setup import media_reader
from tilewise.errors import InvalidConfig, InvalidMedia
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.hosts import AllowedHosts, WebAddress, is_local_name
from tilewise.inputs.media.limits import MediaLimits

LIMITS = MediaLimits(retries=0)


def open_to(*entries: str) -> MediaAccess:
    return MediaAccess(allowed_media_domains=entries, limits=LIMITS)


def may_reach(entries: tuple[str, ...] | None, url: str, *numbers: str) -> bool:
    hosts, address = AllowedHosts.of(entries), WebAddress.of(url)
    try:
        hosts.check(address)
        hosts.check_numbers(address, numbers or (address.host,))
    except InvalidMedia:
        return False
    return True


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/8", "127.0.0.1:{port}", "127.0.0.0/8:{port}", "127.1.2.3/8"])
def test_a_private_host_that_is_named_is_reached(server, base, entry):
    assert open_to(entry.format(port=server.server_port)).fetch(f"{base}/picture") == BODY


@pytest.mark.parametrize("name", ["minio.local", "MINIO.Local.", "minio", "minio.internal", "nas.lan", "s3.home.arpa"])
def test_a_local_name_that_is_listed_may_be_private(server, monkeypatch, name):
    answers(monkeypatch, "127.0.0.1")
    host = name.lower().rstrip(".")
    assert open_to(name).fetch(f"http://{host}:{server.server_port}/picture") == BODY


OPENED = [
    (("10.0.0.0/8",), "http://10.0.0.5/a.png", ()),
    (("10.0.0.0/8",), "http://minio.corp.example/a.png", ("10.1.2.3",)),
    (("a.example, 10.0.0.0/8", "b.example"), "http://10.0.0.5/a.png", ()),
    (("192.168.1.7",), "http://192.168.1.7:9000/a.png", ()),
    (("192.168.1.7:9000",), "http://192.168.1.7:9000/a.png", ()),
    (("[fd00::]/8",), "http://[fd00::7]/a.png", ()),
    (("fd00::/8",), "http://[fd00::7]/a.png", ()),
    (("[fd00::7]:9000",), "http://[fd00::7]:9000/a.png", ()),
    (("10.0.0.0/8",), "http://[::ffff:10.0.0.5]/a.png", ()),
    (("minio.local",), "http://minio.local/a.png", ("10.0.0.9", "fd00::9")),
    (("minio.local:9000",), "http://minio.local:9000/a.png", ("192.168.0.9",)),
    (("media.example", "10.0.0.0/8"), "http://media.example/a.png", ("10.0.0.9",)),
    (("media.example", "10.0.0.0/8"), "http://media.example/a.png", ("93.184.216.34",)),
    (("*", "10.0.0.0/8"), "http://elsewhere.example/a.png", ("93.184.216.34",)),
    (("*", "10.0.0.0/8"), "http://10.0.0.5/a.png", ()),
    (("minio.local", "127.0.0.1"), "http://2130706433/a.png", ("127.0.0.1",)),
    (("media.example", "10.0.0.9"), "http://media.example/a.png", ("10.0.0.9",)),
    (("localhost", "127.0.0.0/8", "::1"), "http://localhost/a.png", ("127.0.0.1", "::1")),
    (("93.184.216.34",), "http://93.184.216.34/a.png", ()),
    (("169.254.169.254",), "http://169.254.169.254/a.png", ()),
    (None, "http://elsewhere.example/a.png", ("93.184.216.34",)),
]
CLOSED = [
    (None, "http://10.0.0.5/a.png", ()),
    (None, "http://minio.local/a.png", ("10.0.0.9",)),
    (("*",), "http://10.0.0.5/a.png", ()),
    (("*",), "http://minio.local/a.png", ("10.0.0.9",)),
    (("10.0.0.0/8",), "http://192.168.0.1/a.png", ()),
    (("10.0.0.0/8",), "http://93.184.216.34/a.png", ()),
    (("10.0.0.0/8",), "http://127.0.0.1/a.png", ()),
    (("10.0.0.0/8",), "http://minio.corp.example/a.png", ("10.1.2.3", "127.0.0.1")),
    (("10.0.0.0/8:9000",), "http://10.0.0.5/a.png", ()),
    (("minio.local:9000",), "http://minio.local/a.png", ("10.0.0.9",)),
    (("minio.local",), "http://minio2.local/a.png", ("10.0.0.9",)),
    (("minio.local",), "http://10.0.0.9/a.png", ()),
    # A name of the public DNS points where its owner likes: naming it opens nothing inside.
    (("media.example",), "http://media.example/a.png", ("10.0.0.9",)),
    (("10.0.0.9",), "http://elsewhere.example/a.png", ("10.0.0.9",)),
    (("127.0.0.1",), "http://localhost/a.png", ("127.0.0.1",)),
    (("media.example", "192.168.0.0/16"), "http://media.example/a.png", ("10.0.0.9",)),
    (("media.example", "10.0.0.0/8"), "http://media.example/a.png", ("10.0.0.9", "127.0.0.1")),
    (("media.localexample.com",), "http://media.localexample.com/a.png", ("10.0.0.9",)),
    # Credentials of clouds, whatever else is open.
    (("metadata.google.internal",), "http://metadata.google.internal/", ("169.254.169.254",)),
    (("metadata",), "http://metadata/", ("169.254.169.254",)),
    (("169.254.0.0/16",), "http://169.254.169.254/latest/meta-data", ()),
    (("fd00::/8",), "http://[fd00:ec2::254]/latest/meta-data", ()),
    (("100.64.0.0/10",), "http://100.100.100.200/latest/meta-data", ()),
    (("169.254.0.0/16",), "http://[::ffff:169.254.169.254]/", ()),
    (("minio.local",), "http://minio.local/a.png", ("fd00:ec2::254",)),
    (("minio.local",), "http://minio.local/a.png", ("fe80::1",)),
    # This machine by its own name, as CVE-2026-33626 had it.
    (("localhost",), "http://localhost/a.png", ("127.0.0.1",)),
    (("a.localhost",), "http://a.localhost/a.png", ("127.0.0.1",)),
    # Networks are of IPv4 or of IPv6, and hidden IPv4 is not what they say.
    (("10.0.0.0/8",), "http://[64:ff9b::a00:5]/a.png", ()),
    (("::/96",), "http://127.0.0.1/", ()),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "url", "numbers"), OPENED)
def test_what_is_opened(entries, url, numbers):
    assert may_reach(entries, url, *numbers)


@pytest.mark.parametrize(("entries", "url", "numbers"), CLOSED)
def test_what_stays_closed(entries, url, numbers):
    assert not may_reach(entries, url, *numbers)


@pytest.mark.parametrize("numbers", [("10.0.0.9",), ("93.184.216.34", "10.0.0.9")])
def test_a_listed_public_name_does_not_lead_inside(no_connection, monkeypatch, numbers):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, 0)) for number in numbers]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(InvalidMedia, match=r"media\.example is at 10\.0\.0\.9, which is not a public address: refused"):
        open_to("media.example").fetch("http://media.example/a.png")


def test_the_way_to_open_an_address_is_the_one_that_opens_it():
    for address, way in (("10.0.0.9", "naming it or its network"), ("169.254.169.254", "naming this very address")):
        with pytest.raises(InvalidMedia, match=f"is not a public address: refused.*{way}"):
            open_to("*").fetch(f"http://{address}/a.png")


def test_a_redirect_out_of_the_named_network_is_refused(server, base):
    with pytest.raises(InvalidMedia, match=r"192\.168\.0\.1, which is not a public address: refused"):
        open_to("127.0.0.0/8").fetch(f"{base}/to?http://192.168.0.1/picture")
    assert len(server.seen) == 1


def test_a_redirect_within_the_named_network_is_followed(server, base):
    target = f"http://127.0.0.1:{server.server_port}/picture"
    assert open_to("127.0.0.0/8").fetch(f"{base}/to?{target}") == BODY


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A local name that would move on between look-up and connection is not asked again."""
    asked = answers(monkeypatch, "10.0.0.9", "169.254.169.254")
    targets = []
    monkeypatch.setattr(
        socket.socket, "connect_ex", lambda connection, address: targets.append(address) or errno.ECONNREFUSED
    )
    with pytest.raises(InvalidMedia, match="cannot be fetched"):
        open_to("minio.local").fetch("http://minio.local:9000/a.png")
    assert (asked, targets) == (["minio.local"], [("10.0.0.9", 9000)])


@pytest.mark.parametrize("name", ["bücher.example", "xn--bcher-kva.example", "BÜCHER.example", "Bücher.Example."])
def test_names_may_be_spelled_in_any_way(name):
    assert may_reach((name,), "http://bücher.example/", "93.184.216.34")


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("*.example", "without wildcards"),
        ("", "name hosts, addresses or networks"),
        ("a b", "name hosts, addresses or networks"),
        ("http://minio.local", "without http:// before it"),
        ("minio.local:0", "port must be from 1 to 65535"),
        ("minio.local:99999", "port must be from 1 to 65535"),
        ("minio.local:http", "port must be from 1 to 65535"),
        ("10.0.0.0/33", r"written as 192\.168\.1\.7"),
        ("10.0.0", r"written as 192\.168\.1\.7"),
        ("0177.0.0.1", r"written as 192\.168\.1\.7"),
        ("0x7f.1", r"written as 192\.168\.1\.7"),
        ("fd00::/200", r"written as 192\.168\.1\.7"),
        ("[fd00::", "name hosts|written as"),
        ("minio.local/8", r"written as 192\.168\.1\.7"),
        ("0.0.0.0/0", "would open every address"),
        ("::/0", "would open every address"),
    ],
)
def test_what_is_no_host_is_refused_at_the_start(entry, hint):
    with pytest.raises(InvalidConfig, match=rf"allowed_media_domains: .*{hint}"):
        media_reader(EngineConfig(allowed_media_domains=("a.example", entry)))


@pytest.mark.parametrize("host", ["minio", "a.b.local", "x.internal", "nas.home.arpa", "localhost"])
def test_names_that_nobody_owns_in_public(host):
    assert is_local_name(host)


@pytest.mark.parametrize(
    "host", ["a.example", "local.example", "home.arpa.example", "2130706433", "0x7f", "10.0.0.1", "::1"]
)
def test_names_that_somebody_may_own_and_addresses(host):
    assert not is_local_name(host)
