"""Proxies of the environment: what goes through them, and that they open nothing that is closed without them."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.inputs.media.loopback import BODY
from tilewise.errors import InvalidMedia
from tilewise.inputs.media.connection import Proxies, Proxy
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.hosts import WebAddress
from tilewise.inputs.media.limits import MediaLimits

LIMITS = MediaLimits(retries=0, image_seconds=20)


class ProxyHandler(BaseHTTPRequestHandler):
    """Gives BODY for whatever is asked for; `CONNECT` leads to the server that the test names."""

    def do_GET(self):
        self.server.seen.append((self.command, self.path, self.headers["Host"], self.headers["Proxy-Authorization"]))
        location = self.server.redirects.pop(self.path, None)
        self.send_response(302 if location else self.server.status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(0 if location else len(BODY)))
        self.end_headers()
        self.wfile.write(b"" if location else BODY)

    def do_CONNECT(self):
        self.server.seen.append((self.command, self.path, None, self.headers["Proxy-Authorization"]))
        if self.server.inner is None:
            return self.send_error(403)
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(self.server.inner) as other:
            ends = {self.connection: other, other: self.connection}
            while ready := select.select(list(ends), (), (), 5)[0]:
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return None
                    ends[end].sendall(data)
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def proxy(monkeypatch):
    """A proxy for everything, on a machine where no name resolves."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ProxyHandler) as server:
        server.seen, server.redirects, server.status, server.inner = [], {}, 200, None
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("https_proxy", server.url)
        resolves(monkeypatch)
        yield server
        server.shutdown()
        thread.join()


def resolves(monkeypatch, **numbers: str) -> None:
    """Names with `_` for their dots, and the address of each; no other name resolves, addresses do."""
    known = {name.replace("_", "."): number for name, number in numbers.items()}
    real = socket.getaddrinfo

    def resolve(host, *args, **options):
        if any(letter.isalpha() for letter in host) and ":" not in host and not host.startswith("0x"):
            if host not in known:
                raise socket.gaierror(-2, "Name or service not known")
            host = known[host]
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def fetch(url: str, *hosts: str) -> bytes:
    return MediaAccess(allowed_media_domains=hosts or None, limits=LIMITS).fetch(url)


def test_a_name_that_only_the_proxy_can_resolve(proxy):
    assert fetch("http://pictures.example/a.png?x=1") == BODY
    assert proxy.seen == [("GET", "http://pictures.example/a.png?x=1", "pictures.example", None)]


def test_a_private_host_that_is_named_is_fetched_through_the_proxy(proxy):
    assert fetch("http://10.0.0.5:9000/a.png", "10.0.0.0/8") == BODY
    assert fetch("http://[fd00::5]/a.png", "[fd00::]/8") == BODY
    assert fetch("http://minio.local/a.png", "minio.local") == BODY
    assert [seen[1] for seen in proxy.seen] == [
        "http://10.0.0.5:9000/a.png", "http://[fd00::5]/a.png", "http://minio.local/a.png",
    ]  # fmt: skip


REFUSED = [
    "http://10.0.0.5/a.png", "http://169.254.169.254/latest/meta-data", "http://[fd00::5]/a.png", "http://[::1]/a.png",
    "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.0.0.1/",
    "http://[::ffff:10.0.0.5]/", "http://localhost/", "http://a.localhost/", "http://metadata.google.internal/",
    "http://minio/a.png", "http://minio.local/a.png", "https://10.0.0.5/a.png", "https://vault.svc/", "http://1.2.3.999/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_a_proxy_opens_no_door(proxy, url):
    with pytest.raises(InvalidMedia, match=r"refused|cannot be resolved"):
        fetch(url)
    assert proxy.seen == []


def test_a_name_that_resolves_here_is_checked_here(proxy, monkeypatch):
    resolves(monkeypatch, inside_example="10.0.0.9", outside_example="93.184.216.34")
    with pytest.raises(
        InvalidMedia, match=r"inside\.example is at 10\.0\.0\.9, which is not a public address: refused"
    ):
        fetch("http://inside.example/a.png")
    assert proxy.seen == []
    assert fetch("http://outside.example/a.png") == BODY


def test_redirects_are_checked_behind_a_proxy_too(proxy):
    for target in ("http://10.0.0.5/a.png", "http://localhost/a.png", "http://evil.example/a.png"):
        proxy.redirects["http://pictures.example/a.png"] = target
        with pytest.raises(InvalidMedia, match=r"refused|allowed domains|cannot be resolved"):
            fetch("http://pictures.example/a.png", "pictures.example")
    assert {seen[1] for seen in proxy.seen} == {"http://pictures.example/a.png"}


def test_the_allowed_domains_hold_behind_a_proxy(proxy):
    for hosts in (("pictures.example",), ("10.0.0.0/8",)):
        with pytest.raises(InvalidMedia, match="allowed domains"):
            fetch("http://other.example/a.png", *hosts)
    assert proxy.seen == []


def test_a_resolver_that_never_answers_does_not_stop_a_proxied_fetch(proxy, monkeypatch):
    release = threading.Event()
    real = socket.getaddrinfo
    monkeypatch.setattr("tilewise.inputs.media.download._PATIENCE", 0.2)
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *a, **o: real(host, *a, **o) if host[0].isdigit() else [release.wait(20)][1:],
    )
    assert fetch("http://pictures.example/a.png") == BODY
    release.set()


def test_credentials_go_to_the_proxy_and_into_no_error(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//us%40er:s3cret@"))
    fetch("http://pictures.example/a.png")
    assert base64.b64decode(proxy.seen[0][3].removeprefix("Basic ")) == b"us@er:s3cret"
    proxy.status = 407
    with pytest.raises(InvalidMedia, match="HTTP status 407") as caught:
        fetch("http://pictures.example/a.png")
    assert "s3cret" not in str(caught.value)


def test_https_goes_through_a_tunnel(proxy):
    """The certificate is that of the host: what answers in the tunnel has to be it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hello = threading.Event()

        def answer():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                if connection.recv(1) == b"\x16":  # a TLS handshake
                    hello.set()

        thread = threading.Thread(target=answer)
        thread.start()
        proxy.inner = listening.getsockname()
        with pytest.raises(InvalidMedia, match="cannot be fetched through the proxy"):
            fetch("https://pictures.example/a.png")
        thread.join()
    assert hello.is_set()
    assert proxy.seen == [("CONNECT", "pictures.example:443", None, None)]


def test_a_tunnel_that_the_proxy_refuses(proxy):
    with pytest.raises(
        InvalidMedia, match=r"cannot be fetched through the proxy .*: the proxy answered with HTTP status 403; check"
    ):
        fetch("https://pictures.example/a.png")


def test_this_machine_is_reached_directly(proxy, server, base):
    """127.0.0.1 would be another machine to a proxy."""
    assert fetch(f"{base}/picture", "127.0.0.1") == BODY
    assert proxy.seen == []


@pytest.mark.parametrize(
    "entry", ["*", "pictures.example", ".example", "example", "*.example", "a.b, pictures.example:80"]
)
def test_no_proxy_is_a_direct_connection_with_every_check(proxy, monkeypatch, entry):
    monkeypatch.setenv("NO_PROXY", entry)
    resolves(monkeypatch, pictures_example="10.0.0.9")
    with pytest.raises(InvalidMedia, match="not a public address: refused"):
        fetch("http://pictures.example/a.png")
    assert proxy.seen == []


@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("ample", "http://pictures.example/", False),
        ("pictures.example:8080", "http://pictures.example/", False),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.1.2.3", "http://10.1.2.3/", True),
        ("[fd00::1]", "http://[fd00::1]/", True),
        ("fd00::/8", "http://[fd00::1]/", True),
        ("[fd00::1]:81", "http://[fd00::1]/", False),
        ("a.example b.example", "http://b.example/", True),
        ("PICTURES.example", "http://pictures.example/", True),
        (" , ", "http://pictures.example/", False),
    ],
)
def test_entries_of_no_proxy(entry, url, direct):
    proxies = Proxies.of({"http_proxy": "proxy:3128", "no_proxy": entry})
    assert (proxies.of_address(WebAddress.of(url)) is None) is direct


@pytest.mark.parametrize(
    ("environment", "http", "https"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": "http://a:1"}, ("a", 1), None),
        ({"http_proxy": "http://b:2", "HTTP_PROXY": "http://a:1"}, ("b", 2), None),
        ({"HTTPS_PROXY": "a:1/"}, None, ("a", 1)),
        ({"ALL_PROXY": "http://a"}, ("a", 80), ("a", 80)),
        ({"all_proxy": "http://a:1", "https_proxy": "http://b:2"}, ("a", 1), ("b", 2)),
        ({"HTTP_PROXY": "http://a:1", "REQUEST_METHOD": "GET"}, None, None),  # a client's Proxy: header, under CGI
        ({"HTTP_PROXY": ""}, None, None),
    ],
)
def test_variables(environment, http, https):
    for url, wanted in (("http://pictures.example/", http), ("https://pictures.example/", https)):
        found = Proxies.of(environment).of_address(WebAddress.of(url))
        assert (found and (found.host, found.port)) == wanted


@pytest.mark.parametrize(
    "value", ["socks5://user:s3cret@a:1", "https://a:1", "ftp://a", "http://", "http://a:x", "http://[::1"]
)
def test_a_proxy_that_is_not_spoken_to_is_refused_by_the_name_of_its_variable(value):
    with pytest.raises(
        InvalidMedia, match=r"^ALL_PROXY names .*fetched through http:// proxies alone.*NO_PROXY"
    ) as caught:
        Proxies.of({"ALL_PROXY": value}).of_address(WebAddress.of("http://pictures.example/"))
    assert "s3cret" not in str(caught.value)


def test_a_proxy_s_parts():
    assert Proxy.of("http://user:p%3Aw@[::1]:3128", "HTTP_PROXY") == Proxy("::1", 3128, ("user", "p:w"))
