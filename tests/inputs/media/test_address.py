"""Addresses on the web: one reading of a URL, and what counts as public."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewise.errors import InvalidMedia
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.hosts import WebAddress, is_public, short


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("http://a.example", "a.example", 80, "/"),
        ("HTTPS://A.Example./x", "a.example", 443, "/x"),
        ("http://a.example/a b.png", "a.example", 80, "/a%20b.png"),
        ("http://a.example:8080/x?y=1&z=%20#part", "a.example", 8080, "/x?y=1&z=%20"),
        ("http://bücher.example/ü?q=ü", "xn--bcher-kva.example", 80, "/%C3%BC?q=%C3%BC"),
        ("http://１２７.０.０.１/", "127.0.0.1", 80, "/"),
        ("http://127。0。0。1/", "127.0.0.1", 80, "/"),
        ("http://[::1]:99/", "::1", 99, "/"),
        ("http://[0:0:0:0:0:ffff:7f00:1]/", "::ffff:7f00:1", 80, "/"),
        ("http://[fe80::1%25eth0]/", "fe80::1", 80, "/"),
    ],
)
def test_parts(url, host, port, target):
    address = WebAddress.of(url)
    assert (address.host, address.port, address.target) == (host, port, target)


@pytest.mark.parametrize(
    ("url", "header"),
    [("http://A.example:80/", "a.example"), ("https://a.example:80/", "a.example:80"), ("http://[::1]:9/", "[::1]:9")],
)
def test_the_host_that_is_sent_is_the_host_that_was_checked(url, header):
    assert WebAddress.of(url).host_header == header


@pytest.mark.parametrize(
    "url",
    [
        "http://allowed.example\\@evil.example/", "http://evil.example\\.allowed.example/", "http:\\\\evil.example/",
        "http://a.example\t/", "http://a.exa\nmple/", "http://a.example/\r\nHost: b", "http:// a.example/",
        "http://user@a.example/", "http://user:pass@a.example/", "http://a.example@b.example/", "http://@a.example/",
        "http://a_b!.example/", "http://a..example/", "http://.example/", "http://[::1/", "http://[v1.x]/",
        "http://a.example:99999/", "http://a.example:0/", "http://a.example:-1/", "http:///x", "http:a.example", "ftp://a.example/",
        "//a.example/", "http://[127.0.0.1]/",
        "http://a.example\x00.b/", "http://%61.example/", "http://a.example／evil/", "http://" + "a" * 64 + ".example/",
    ],
)  # fmt: skip
def test_what_others_might_read_differently_is_refused(url):
    with pytest.raises(InvalidMedia):
        WebAddress.of(url)


def test_an_address_is_shown_in_what_utf_8_can_carry():
    assert short("http://\ud800" + "a" * 200) == "http://\\ud800" + "a" * 109 + "..."


PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8"]
NOT_PUBLIC = [
    "127.0.0.1", "0.0.0.0", "10.0.0.1", "172.31.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "198.18.0.1",
    "192.0.2.1", "192.88.99.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::808:808", "2002:a00:1::", "2001::1",
    "2001:db8::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1%eth0", "fec0::1", "ff02::1", "100::1",
    "4000::1",
]  # fmt: skip


@pytest.mark.parametrize("number", PUBLIC)
def test_public(number):
    assert is_public(number)


@pytest.mark.parametrize("number", NOT_PUBLIC)
def test_not_public(number):
    assert not is_public(number)


NOTATIONS = [
    "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "0x7f.0.0.1", "127.1", "127.0.1", "0", "0.0.0.0",
    "127.0.0.1.", "localhost", "LOCALHOST", "localhost.", "１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "[::]", "[::1]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "2852039166", "0xa9fea9fe", "169.254.169.254", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "10.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("host", NOTATIONS)
def test_private_addresses_are_refused_in_every_notation(no_connection, host):
    with pytest.raises(InvalidMedia, match=r"which is not a public address: refused|cannot be resolved"):
        MediaAccess().fetch(f"http://{host}/latest/meta-data")


@settings(max_examples=300)
@given(st.ip_addresses())
def test_every_address_is_one_or_the_other(ip):
    assert is_public(str(ip)) in (True, False)
