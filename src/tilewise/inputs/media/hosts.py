"""The host that a URL means, and whether media may come from it.

A URL is taken apart once, here; what is connected to and what is sent is made of these parts, so that no other parser
can read the same URL differently.

Unless an operator names hosts (`allowed_media_domains`), any public one is reached and no other. A name in the public
DNS belongs to somebody who may let it point anywhere, so naming it opens public addresses alone. Private addresses are
opened by naming them or their network, or by a name that nobody can own in public; those of cloud metadata by naming
them exactly.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import SplitResult, quote, urlsplit

from tilewise.errors import InvalidConfig, InvalidMedia

MAX_URL = 8192
"""Most characters of a http(s) URL."""
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
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_ANY = "*"
_BRACKETS = re.compile(r"\[([0-9A-Fa-f:.]+)(?:/\d{1,3})?\](?:/\d{1,3})?(?::(\d{1,5}))?")
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
# Names without a dot, and these, are never handed out in public: RFC 6761, RFC 6762, RFC 8375, and ICANN's resolutions
# on internal (2024) and on home and corp (2018). The others are in use inside and were never delegated.
_LOCAL = ["local", "localdomain", "internal", "intranet", "private", "lan", "home", "corp", "test", "svc", "home.arpa"]
# What such a name may point to: private networks (RFC 1918, RFC 4193, RFC 6598), and this machine.
_INSIDE = tuple(
    map(
        ipaddress.ip_network,
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7", "::1/128"],
    )
)
# Where clouds hand out credentials to whoever asks from inside.
_METADATA = set(map(ipaddress.ip_address, ["169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254"]))


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
            if port == 0:
                raise InvalidMedia(f"{short(url)}: nothing listens at port 0; leave it out for {default}.")
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
    """Return a URL cut to 120 characters, for messages; halves of surrogate pairs, which UTF-8 has not, are escapes."""
    shown = url if len(url) <= 120 else url[:117] + "..."
    return shown.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """Hosts by name and by network, each with the port it is opened on; None = any port."""

    entries: tuple[str, ...] | None = None
    any_public: bool = True
    names: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[tuple[Network, int | None], ...] = ()

    @classmethod
    def of(cls, entries: Sequence[str] | None) -> AllowedHosts:
        """Read names, addresses and networks, each with `:port` or without, some perhaps joined by commas.

        `*` is any public host. Raises InvalidConfig for an entry that is none of these.
        """
        return cls() if entries is None else _read_entries(tuple(",".join(entries).split(",")))

    def check(self, address: WebAddress) -> None:
        """Raise InvalidMedia, before it is looked up, for a host that is not allowed whatever its addresses are."""
        if not self.named(address) and not self.networks:
            raise self._elsewhere(address)

    def check_numbers(self, address: WebAddress, numbers: Sequence[str], private: bool = False) -> None:
        """Raise InvalidMedia if any of the host's addresses may not be reached: one is enough, as all may be tried.

        With `private` every address counts as public.
        """
        for number in numbers:
            if self._opens(address, number):
                continue
            if not private and not is_public(number):
                raise InvalidMedia(
                    f"{address.host} is at {number}, which is not a public address: refused. The server's "
                    f"--allowed-media-domains can open it, by {_opened_by(number)}."
                )
            if not self.named(address):
                raise self._elsewhere(address)

    def check_unresolved(self, address: WebAddress) -> None:
        """Raise InvalidMedia for a host that may not be reached, where only a proxy can find its addresses."""
        if is_local_name(address.host) and not self._lists(address):
            raise InvalidMedia(f"{address.host} is a name of a private network: refused.")
        if not self.named(address):
            raise self._elsewhere(address)

    def named(self, address: WebAddress) -> bool:
        return self.any_public or self._lists(address)

    def _lists(self, address: WebAddress) -> bool:
        return not self.names.isdisjoint({(address.host, None), (address.host, address.port)})

    def _opens(self, address: WebAddress, number: str) -> bool:
        """True if an entry opens an address, even a private one.

        A network does so for every host in it, an address for URLs that are written with it, and a local name for
        addresses of private networks.
        """
        ip, exact = _unmapped(number), is_address(address.host) or self._lists(address)
        networks = [
            network
            for network, port in self.networks
            if port in (None, address.port) and ip in network and (exact or network.num_addresses > 1)
        ]
        if ip in _METADATA:
            return any(network.num_addresses == 1 for network in networks)
        if networks:
            return True
        local = is_local_name(address.host) and not f".{address.host}".endswith(".localhost")
        return local and self._lists(address) and any(ip in network for network in _INSIDE)

    def _elsewhere(self, address: WebAddress) -> InvalidMedia:
        listed = any(name == address.host for name, _ in self.names)  # on another port
        return InvalidMedia(
            f"The URL must be from one of the allowed domains: {list(self.entries or ())}. "
            f"Input URL domain: {address.host_header if listed else address.host}"
        )


def _opened_by(number: str) -> str:
    if _unmapped(number) in _METADATA:
        return "naming this very address, as it hands out secrets of machines in a cloud"
    return "naming it or its network"


def is_local_name(host: str) -> bool:
    """True if nobody can own a host name in the public DNS. Addresses are no names."""
    if is_address(host):
        return False
    return "." not in host or any(host.endswith(f".{suffix}") for suffix in (*_LOCAL, "localhost"))


def is_address(host: str) -> bool:
    """True for IPv6, and for IPv4 in any spelling, 0x7f.1 among them. Source: the URL standard of WHATWG."""
    return ":" in host or _ENDS_IN_NUMBER.fullmatch(host) is not None


def _unmapped(number: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(number.partition("%")[0])
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


@lru_cache(maxsize=64)
def _read_entries(entries: tuple[str, ...]) -> AllowedHosts:
    names, networks = set(), []
    for entry in entries:
        host, port = _split(entry.strip())
        network = _network(host)
        if network is not None:
            networks.append((network, port))
        elif host != _ANY:
            names.add((_host_name(host, entry), port))
    # An address is listed as a name as well, so that a public one may be.
    names |= {(str(network.network_address), port) for network, port in networks if network.num_addresses == 1}
    return AllowedHosts(entries, _ANY in map(str.strip, entries), frozenset(names), tuple(networks))


def _split(entry: str) -> tuple[str, int | None]:
    if "://" in entry:
        raise _no_host(entry, "name the host without http:// before it")
    bracketed = _BRACKETS.fullmatch(entry)
    if bracketed:
        port = bracketed[2]
        host = (entry.rpartition(":")[0] if port else entry).replace("[", "").replace("]", "")
    elif entry.count(":") == 1:
        host, _, port = entry.partition(":")
    else:
        return entry, None  # a name, or an IPv6 address or network
    if not port:
        return host, None
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise _no_host(entry, "its port must be from 1 to 65535")
    return host, int(port)


def _network(host: str) -> Network | None:
    try:
        network = ipaddress.ip_network(host, strict=False)
    except ValueError:
        if "/" in host or is_address(host):
            raise _no_host(host, "an address or network is written as 192.168.1.7, 10.0.0.0/8 or [fd00::]/8") from None
        return None
    if not network.prefixlen:
        raise _no_host(host, "it would open every address: name the networks that media are in, or * for the public")
    return network


def _host_name(host: str, entry: str) -> str:
    try:
        return plain_host(host)
    except ValueError:
        hint = "each host is named by itself, without wildcards" if "*" in host else "name hosts, addresses or networks"
        raise _no_host(entry, hint) from None


def _no_host(entry: str, remedy: str) -> InvalidConfig:
    return InvalidConfig(f"allowed_media_domains: {entry!r:.80} is no host: {remedy}.")
