"""The address on the web that a URL means, whether it may be reached, and through which proxy.

A URL is taken apart once, here; what is connected to and what is sent is made of these parts, so that no other parser
can read the same URL differently.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from tilewise.environment import Environment
from tilewise.errors import InvalidMedia
from tilewise.inputs.media_limits import Deadline

MAX_URL = 8192
"""Most characters of a http(s) URL."""
_SLICE = 0.1  # seconds between two looks at whether anybody still waits
_PORTS = {"http": 80, "https": 443}
# Browsers read a backslash as a slash, others do not; tabs and line breaks are dropped by some.
_AMBIGUOUS = re.compile(r"[\x00-\x1f\x7f\\]")
_IN_PATH = "/%:@!$&'()*+,;=~-._"  # sent as they are; all else is escaped
_HOST = re.compile(r"[a-z0-9_.-]+")
# IPv6 ranges whose last 32 bits are an IPv4 address that a gateway (NAT64) or an old stack would go to.
_HOLDS_IPV4 = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96")))
# All of IPv6 that is handed out (the rest is local, or nothing yet), and what is not for everybody there.
_IPV6_UNICAST = ipaddress.ip_network("2000::/3")
_SPECIAL = tuple(map(ipaddress.ip_network, ("192.88.99.0/24", "3fff::/20")))


@dataclass(frozen=True, slots=True)
class WebAddress:
    """The parts of a http(s) URL that matter."""

    scheme: str
    host: str
    """Lower case, ASCII, without a final dot; an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query, as sent."""

    @classmethod
    def of(cls, url: str) -> WebAddress:
        """Take a URL apart.

        Raises InvalidMedia for what is no http(s) URL, or means different hosts to different readers.
        """
        if len(url) > MAX_URL:
            raise InvalidMedia(f"A URL of {len(url)} characters is too long, the limit is {MAX_URL}.")
        try:
            parts = urlsplit(url)
            port, default = parts.port, _PORTS.get(parts.scheme)
            if default is None or not parts.hostname:
                raise InvalidMedia(f"{short(url)}: The URL must be either a HTTP, data or file URL.")
            _check_unambiguous(url, parts)
            path = quote(parts.path or "/", safe=_IN_PATH)
            query = quote(parts.query, safe=f"{_IN_PATH}?[]")
            target = f"{path}?{query}" if query else path
            return cls(parts.scheme, plain_host(parts.hostname), default if port is None else port, target)
        except ValueError as error:  # of urllib and idna
            if isinstance(error, InvalidMedia):
                raise
            raise InvalidMedia(f"{short(url)!r} is not a valid URL ({error}).") from None

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _PORTS[self.scheme] else f"{name}:{self.port}"


def _check_unambiguous(url: str, parts: SplitResult) -> None:
    if _AMBIGUOUS.search(url.partition("?")[0]):
        raise InvalidMedia(f"{short(url)!r}: a URL may not hold line breaks, control characters or backslashes.")
    if "@" in parts.netloc:
        raise InvalidMedia(f"{short(url)}: a URL with credentials is not fetched; leave out what is before @.")
    if "[" in parts.netloc and ":" not in (parts.hostname or ""):
        raise InvalidMedia(f"{short(url)}: only an IPv6 address stands in brackets.")


def plain_host(host: str) -> str:
    """Return a host in the form of `WebAddress.host`. Raises ValueError for what is none."""
    if ":" in host:
        return str(ipaddress.IPv6Address(host.partition("%")[0]))  # a zone means something on this machine only
    name = host.encode("idna").decode().lower().removesuffix(".")  # full-width digits and dots become ASCII here
    if not _HOST.fullmatch(name):
        raise ValueError(f"{host[:80]!r} is no host name")
    return name


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


def is_public(number: str) -> bool:
    """True if an address is public; where it contains an IPv4 address, that one decides."""
    ip = ipaddress.ip_address(number.partition("%")[0])
    if ip.version == 6:
        inner = ip.sixtofour
        if inner is None and any(ip in network for network in _HOLDS_IPV4):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _IPV6_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL)


def short(url: str) -> str:
    """Return a URL cut to 120 characters, for messages."""
    return url if len(url) <= 120 else url[:117] + "..."


_THIS_MACHINE = re.compile(r"localhost|.*\.localhost|127\.\d+\.\d+\.\d+|::1")


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
