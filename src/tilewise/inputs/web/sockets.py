"""Connections to checked addresses: every wait is short, and the deadline is asked before the next."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore

from tilewise.inputs.media_limits import Deadline

_SLICE = 0.1  # seconds
_PENDING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)


_TLS = {
    "WRONG_VERSION_NUMBER": "the host does not speak TLS on this port, write http:// if it serves plain HTTP",
    "HTTP_REQUEST": "the host does not speak TLS on this port, write http:// if it serves plain HTTP",
    "UNEXPECTED_EOF_WHILE_READING": "the host closed the connection",
}


class CheckedNetwork(httpcore.NetworkBackend):
    """A network that connects to these addresses, whatever name it is asked for."""

    def __init__(self, addresses: Sequence[str], deadline: Deadline) -> None:
        self._addresses = addresses
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers; one that does not is given its share of the time."""
        share = self._deadline.seconds / (len(self._addresses) + 1)
        problem = ""
        for address in self._addresses:
            try:
                return PatientStream(self._connect(address, port, share), self._deadline)
            except OSError as error:
                problem = f"there is no connection to {address} port {port} ({_words(error)})"
        raise httpcore.ConnectError(problem)

    def _connect(self, address: str, port: int, seconds: float) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            code = connection.connect_ex((address, port))
            if code not in _PENDING:
                raise OSError(code, os.strerror(code))
            while not select.select((), (connection,), (), _SLICE)[1]:
                seconds -= _SLICE
                if self._deadline.left() and seconds <= 0:
                    raise TimeoutError(errno.ETIMEDOUT, "no answer")
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
        except BaseException:
            connection.close()
            raise
        return connection


class PatientStream(httpcore.NetworkStream):
    """A connection whose reads go on until the deadline, and end at once when the request is cancelled."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            self._connection.settimeout(min(_SLICE, self._deadline.left()))
            try:
                return self._connection.recv(max_bytes)
            except TimeoutError:
                continue
            except OSError as error:
                raise httpcore.ReadError(_words(error)) from None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._connection.settimeout(self._deadline.left())  # a request is short, so this does not wait
        try:
            self._connection.sendall(buffer)
        except OSError as error:
            raise httpcore.WriteError(_words(error)) from None

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            secure = ssl_context.wrap_socket(
                self._connection, server_hostname=server_hostname, do_handshake_on_connect=False
            )
        except (OSError, ValueError) as error:
            self.close()
            raise httpcore.ConnectError(f"TLS failed: {_words(error)}") from None
        stream = PatientStream(secure, self._deadline)
        stream._shake_hands(secure)
        return stream

    def _shake_hands(self, secure: ssl.SSLSocket) -> None:
        while True:
            try:
                secure.settimeout(min(_SLICE, self._deadline.left()))
                return secure.do_handshake()
            except TimeoutError:
                continue
            except OSError as error:
                self.close()
                raise httpcore.ConnectError(f"TLS failed: {_words(error)}") from None
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        self._connection.close()

    def get_extra_info(self, info: str) -> Any:
        return self._connection if info == "socket" else None


def _words(error: Exception) -> str:
    """Return what is wrong with a connection, without a library's marks around it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the host's certificate is not accepted, {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "UNEXPECTED_EOF_WHILE_READING"
        return _TLS.get(reason, reason.replace("_", " ").lower())
    return (getattr(error, "strerror", None) or "the host name cannot be used").lower()
