"""A web server on this machine that answers as tests ask it to, and a resolver that says what they want."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BODY = b"picture bytes " * 10
LIMIT = 1000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, self.headers["Host"], self.headers["Accept-Encoding"]))
        self.server.reached.set()
        name, _, value = self.path.lstrip("/").partition("?")
        with contextlib.suppress(ConnectionError):
            getattr(self, f"answer_{name}")(value)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_picture(self, _):
        self.reply(200, BODY)

    def answer_page(self, _):
        self.reply(200, b"<!DOCTYPE html><html><body>A picture</body></html>", Content_Type="text/html")

    def answer_disguised(self, _):
        self.reply(200, b"\n<html></html>", Content_Type="image/png")

    def answer_status(self, value):
        self.reply(int(value), b"no")

    def answer_hop(self, value):
        self.reply(302, Location=f"/hop?{int(value) - 1}" if int(value) > 1 else "/picture")

    def answer_to(self, value):
        self.reply(302, Location=value)

    def answer_declared(self, _):
        self.reply(200, b"x", Content_Length=str(LIMIT + 1))

    def answer_streamed(self, value):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(int(value)):
            self.wfile.write(b"64\r\n" + b"x" * 100 + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def answer_packed(self, _):
        self.reply(200, gzip.compress(bytes(1_000_000))[:LIMIT], Content_Encoding="gzip")

    def answer_encoded(self, value):
        """The picture in `encoding`, or in as many of its parts as a number behind a dash says."""
        name, _, cut = value.partition("-")
        raw = zlib.compressobj(wbits=-15)
        bodies = {
            "gzip": gzip.compress(BODY),
            "x": gzip.compress(BODY),
            "two": gzip.compress(BODY[:70]) + gzip.compress(BODY[70:]),
            "tail": gzip.compress(BODY) + bytes(9),
            "many": gzip.compress(b"") * 1001,
            "deflate": zlib.compress(BODY),
            "raw": raw.compress(BODY) + raw.flush(),
            "br": b"br",
            "damaged": b"\x1f\x8b\x08" + b"\xff" * 40,
        }
        names = {"x": "X-GZIP", "two": "gzip", "tail": "gzip", "many": "gzip", "raw": "deflate", "damaged": "gzip"}
        self.reply(200, bodies[name][: int(cut) if cut else None], Content_Encoding=names.get(name, name))

    def answer_no_http(self, _):
        self.wfile.write(b"SSH-2.0-secret\r\n\r\n")
        self.close_connection = True

    def answer_no_chunks(self, _):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"secret\r\n")
        self.close_connection = True

    def answer_short(self, _):
        self.reply(200, b"x", Content_Length="50")
        self.close_connection = True

    def answer_silent(self, _):
        """Nothing, until the test is over."""
        self.server.release.wait(20)
        self.reply(200, BODY)

    def answer_stall(self, _):
        """The beginning, and then nothing."""
        self.begin(len(BODY))
        self.wfile.write(BODY[:10])
        self.server.release.wait(20)
        self.wfile.write(BODY[10:])

    def answer_drip(self, _):
        """A byte now and then."""
        self.begin(len(BODY))
        for index in range(len(BODY)):
            self.wfile.write(BODY[index : index + 1])
            self.server.release.wait(0.05)

    def answer_slow_hop(self, value):
        self.server.release.wait(0.15)
        self.answer_to(f"/slow_hop?{value}x")

    def answer_flaky(self, value):
        """A server's error so many times."""
        if len(self.server.seen) <= int(value):
            self.reply(503, b"busy")
        else:
            self.reply(200, BODY)

    def answer_dropped(self, value):
        """A closed connection so many times."""
        if len(self.server.seen) <= int(value):
            self.close_connection = True
        else:
            self.reply(200, BODY)

    def begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients leave in the middle here; that is what they are for."""


@pytest.fixture(scope="module")
def running():
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(running):
    running.seen = []
    running.reached, running.release = threading.Event(), threading.Event()
    yield running
    running.release.set()


@pytest.fixture
def base(server):
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def no_connection(monkeypatch):
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *args: pytest.fail("connected"))


def answers(monkeypatch, *addresses: str) -> list[str]:
    """Let every name resolve to these addresses, one lookup after the other; returns the names asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host, port, *args, **options):
        if host.replace(".", "").replace(":", "").isalnum() and any(host == address for address in addresses):
            return real(host, port, *args, **options)
        asked.append(host)
        return real(addresses[min(len(asked), len(addresses)) - 1], port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked
