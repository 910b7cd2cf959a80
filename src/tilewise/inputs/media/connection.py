"""Connections to checked addresses, direct or through a proxy.

Every wait is short, and the deadline is asked before the next.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import selectors
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore

from tilewise.environment import Environment
from tilewise.errors import InvalidMedia
from tilewise.inputs.media.hosts import WebAddress
from tilewise.inputs.media.limits import Deadline

_SLICE = 0.1  # seconds between two looks at whether anybody still waits
_THIS_MACHINE = re.compile(r"localhost|.*\.localhost|127\.\d+\.\d+\.\d+|::1")
_PENDING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)
_TLS = {
    "WRONG_VERSION_NUMBER": "the host does not speak TLS on this port, write http:// if it serves plain HTTP",
    "HTTP_REQUEST": "the host does not speak TLS on this port, write http:// if it serves plain HTTP",
    "UNEXPECTED_EOF_WHILE_READING": "the host closed the connection",
}
_HEADERS = [(b"User-Agent", b"tilewise"), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]
_REMEDY = "check the address and the host, or send the file as a data URL"


def look_up(host: str, deadline: Deadline, patience: float | None = None) -> tuple[str, ...]:
    """Return numeric addresses of a host, in the resolver's order: it puts first what this machine can reach.

    A thread asks, as a look-up can neither be interrupted nor told how long it may take. Raises InvalidMedia if there
    is no answer, within `patience` seconds if they are given.
    """
    answer: list[tuple[str, ...] | Exception] = []

    def ask() -> None:
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answer.append(tuple(dict.fromkeys(str(info[4][0]) for info in infos)))
        except (OSError, UnicodeError) as error:
            answer.append(error)

    thread = threading.Thread(target=ask, name="tilewise-look-up", daemon=True)
    thread.start()
    while thread.is_alive() and (patience is None or patience > 0):
        thread.join(min(_SLICE, deadline.left()))
        patience = None if patience is None else patience - _SLICE
    if not answer or not answer[0] or isinstance(answer[0], Exception):
        words = getattr(answer[0], "strerror", None) if answer else None
        reason = f" ({words})" if words else ""
        raise InvalidMedia(f"{host}: this host name cannot be resolved{reason}.")
    return answer[0]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A plain HTTP proxy."""

    host: str
    port: int
    auth: tuple[str, str] | None = None

    @classmethod
    def of(cls, value: str, variable: str) -> Proxy:
        """Read a variable's value. Raises InvalidMedia, naming the variable and not its value, maybe a password."""
        try:
            parts = urlsplit(value if "://" in value else f"http://{value}")
            scheme, host, port = parts.scheme, parts.hostname, parts.port or 80
        except ValueError:
            scheme, host, port = "", None, 0
        if not host or scheme != "http":
            what = f"a proxy of {scheme}://" if scheme and scheme != "http" else "no proxy"
            raise InvalidMedia(
                f"{variable} names {what}: media are fetched through http:// proxies alone, as http://proxy:3128; set "
                "it so, or name the host in NO_PROXY."
            )
        auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        return cls(host, port, auth)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies that URLs are fetched through, as the environment names them."""

    values: tuple[tuple[str, str, str], ...] = ()
    """(scheme, variable, value) of each proxy."""
    direct: tuple[str, ...] = ()
    """Entries of NO_PROXY."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Proxies:
        """Read the environment: small letters win; HTTP_PROXY counts only outside CGI, where a client could set it."""
        read, schemes = Environment(environment), ("http", "https")
        values = [(scheme, *found) for scheme in schemes if (found := read.proxy(scheme)) is not None]
        direct = read.no_proxy
        return cls(tuple(values), tuple(re.split(r"[\s,]+", direct.strip().lower())) if direct.strip() else ())

    def of_address(self, address: WebAddress) -> Proxy | None:
        """Return the proxy to an address; None = a direct connection.

        This machine is always reached directly: its own addresses mean another machine to a proxy.
        """
        if _THIS_MACHINE.fullmatch(address.host) or any(_covers(entry, address) for entry in self.direct):
            return None
        for scheme, variable, value in self.values:
            if scheme == address.scheme:
                return Proxy.of(value, variable)
        return None


def _covers(entry: str, address: WebAddress) -> bool:
    """True if an entry of NO_PROXY covers a host.

    It is `*`, a name, which covers what is below it too, an address or a network; all but `*` may have a port.
    """
    if entry == "*":
        return True
    name, _, port = entry.rpartition(":")
    if name and port.isdecimal() and (":" not in name or name.endswith("]")):
        if int(port) != address.port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").lstrip(".")
    if not entry:
        return False
    try:
        return ipaddress.ip_address(address.host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return address.host == entry or address.host.endswith(f".{entry}")


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
            with selectors.DefaultSelector() as waiting:  # select() knows no descriptor above 1023
                waiting.register(connection, selectors.EVENT_WRITE)
                while not waiting.select(_SLICE):
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


class TryAgain(Exception):
    """A failure that another try may mend; its text is for the error after the last one."""


@contextmanager
def open_response(
    address: WebAddress, numbers: tuple[str, ...], deadline: Deadline, proxy: Proxy | None = None
) -> Iterator[httpcore.Response]:
    """Yield an answer, its body not read yet. `numbers` are addresses of the proxy, without one those of the host."""
    host = f"[{address.host}]" if proxy and ":" in address.host else address.host
    port = address.port if address.host_header.endswith(f":{address.port}") else None
    url = httpcore.URL(scheme=address.scheme.encode(), host=host.encode(), port=port, target=address.target.encode())
    headers = [(b"Host", address.host_header.encode()), *_HEADERS]
    try:
        with (
            _pool(CheckedNetwork(numbers, deadline), proxy) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            yield response
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.ProxyError) as error:
        through = f" through the proxy {proxy.host}:{proxy.port}" if proxy else ""
        raise TryAgain(f"cannot be fetched{through}: {_problem(error)}; {_REMEDY}") from None


def _problem(error: Exception) -> str:
    """Return the problem in our words: those of the library quote what the host has sent."""
    said = str(error)
    if isinstance(error, httpcore.ConnectError):
        return said or "there is no connection to the host"
    if isinstance(error, httpcore.ProxyError):
        status = said.split(" ")[0]
        return f"the proxy answered with HTTP status {status}" if status.isdecimal() else "the proxy refused"
    if isinstance(error, httpcore.RemoteProtocolError):
        if said.startswith("Server disconnected"):
            return "the host closed the connection without an answer"
        if said.startswith("peer closed connection"):
            return "the connection was closed before the whole file had come"
        return "the host answered with something that is no HTTP"
    if isinstance(error, httpcore.LocalProtocolError):
        return "its address cannot be sent as HTTP"
    return "the host did not answer in time" if isinstance(error, httpcore.TimeoutException) else "the connection broke"


def _pool(network: CheckedNetwork, proxy: Proxy | None) -> httpcore.ConnectionPool:
    if proxy is None:
        return httpcore.ConnectionPool(ssl_context=_ssl_context(), network_backend=network)
    url = httpcore.URL(scheme=b"http", host=proxy.host.encode(), port=proxy.port, target=b"/")
    return httpcore.HTTPProxy(url, proxy.auth, ssl_context=_ssl_context(), network_backend=network)


@cache
def _ssl_context() -> ssl.SSLContext:
    """Return the TLS settings, made once: reading certificates takes tens of milliseconds."""
    return httpcore.default_ssl_context()
