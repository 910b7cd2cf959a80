"""Proxies that the environment names: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in capitals or not."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tilewise.errors import InvalidMedia
from tilewise.inputs.web.address import WebAddress

_THIS_MACHINE = re.compile(r"localhost|.*\.localhost|127\.\d+\.\d+\.\d+|::1")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A plain HTTP proxy."""

    host: str
    port: int
    auth: tuple[str, str] | None = None

    @classmethod
    def of(cls, value: str, variable: str) -> Proxy:
        """Raises InvalidMedia, naming the variable and not what it holds, which may be a password."""
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
    """Which proxy a URL is fetched through."""

    values: tuple[tuple[str, str, str], ...] = ()
    """Scheme, variable and value."""
    direct: tuple[str, ...] = ()
    """Entries of NO_PROXY."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Proxies:
        """Small letters win, and http_proxy counts in capitals only outside CGI, where a client could set it."""
        values = []
        for scheme in ("http", "https"):
            capitals = () if scheme == "http" and "REQUEST_METHOD" in environment else (f"{scheme.upper()}_PROXY",)
            variables = (f"{scheme}_proxy", *capitals, "all_proxy", "ALL_PROXY")
            found = next((name for name in variables if environment.get(name)), None)
            if found is not None:
                values.append((scheme, found, environment[found]))
        direct = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
        return cls(tuple(values), tuple(re.split(r"[\s,]+", direct.strip().lower())) if direct.strip() else ())

    def of_address(self, address: WebAddress) -> Proxy | None:
        """None = a direct connection, as always to this machine: its own addresses mean another one to a proxy."""
        if _THIS_MACHINE.fullmatch(address.host) or any(_covers(entry, address) for entry in self.direct):
            return None
        for scheme, variable, value in self.values:
            if scheme == address.scheme:
                return Proxy.of(value, variable)
        return None


def _covers(entry: str, address: WebAddress) -> bool:
    """Whether an entry of NO_PROXY covers a host: `*`, a name and what is below it, an address or network, any with
    a port."""
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
