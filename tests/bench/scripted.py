"""A server that says what a test has written down, chunk by chunk, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAUSE = 0.05  # seconds before each chunk
END = "[DONE]"
ABORT = "abort"
"""In place of a chunk: the connection ends here."""


def chunk(*, usage: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [choice] if choice else [], **({"usage": usage} if usage else {})}


class ScriptedServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: Sequence[Any], status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        self.script, self.status = script, status
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.now = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Talk(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            self._answer(server)
        finally:
            with server.lock:
                server.now -= 1

    def _answer(self, server: ScriptedServer) -> None:
        self.send_response(server.status)
        self.send_header("Connection", "close")
        self.end_headers()
        for item in server.script:
            time.sleep(PAUSE)
            if item == ABORT:
                self.connection.shutdown(2)
                return
            text = item if isinstance(item, str) else json.dumps(item)
            self.wfile.write((text if server.status != 200 else f"data: {text}\n\n").encode())
            self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def scripted(*script: Any, status: int = 200) -> Iterator[ScriptedServer]:
    server = ScriptedServer(script, status)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
