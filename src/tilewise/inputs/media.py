"""Fetching media: http(s), data and file URLs, closed by default.

Only public addresses are reached: a host name is resolved first, every address is checked, and the connection goes
to the checked address, so that a name cannot change its mind in between. Every redirect goes through the same door.
Local files are read only below `allowed_local_media_path`.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import httpx

from tilewise.errors import InvalidMedia

# IPv6 ranges whose last 32 bits are an IPv4 address that a gateway (NAT64) or an old stack would go to.
_HOLDS_IPV4 = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
_HEADERS = {"User-Agent": "tilewise", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class MediaAccess:
    """What may be fetched, and how much of it."""

    allowed_local_media_path: Path | None = None
    allowed_media_domains: tuple[str, ...] | None = None
    """Exact host names; None = any public host."""
    allow_private_addresses: bool = False
    max_bytes: int = 256 * 2**20
    max_redirects: int = 3
    timeout: float = 20.0

    def fetch(self, url: str) -> bytes:
        """The bytes behind a URL. Raises InvalidMedia for what is refused, missing or too large."""
        try:
            return self._fetch(url)
        except (ValueError, httpx.InvalidURL) as error:  # of urllib, httpx, base64 and pathlib, for what is no URL
            if isinstance(error, InvalidMedia):
                raise
            raise InvalidMedia(f"{_short(url)!r} is not a valid URL ({error}).") from None

    def _fetch(self, url: str) -> bytes:
        scheme = urlsplit(url).scheme
        if scheme == "data":
            return self._decode_data_url(url)
        if scheme == "file":
            return self._read_local(Path(unquote(urlsplit(url).path)))
        if scheme in ("http", "https"):
            return self._download(url)
        raise InvalidMedia(f"{_short(url)}: The URL must be either a HTTP, data or file URL.")

    def _decode_data_url(self, url: str) -> bytes:
        head, _, body = url.partition(",")
        if not head.endswith(";base64"):
            raise InvalidMedia("Only base64 data URLs are supported for now.")
        if len(body) * 3 // 4 > self.max_bytes:
            raise self._too_large("the data URL", len(body) * 3 // 4)
        try:
            return base64.b64decode(body, validate=True)
        except ValueError as error:
            raise InvalidMedia(f"{_short(url)}: not valid base64 ({error}).") from None

    def _read_local(self, path: Path) -> bytes:
        root = self.allowed_local_media_path
        if root is None:
            raise InvalidMedia("Cannot load local files without `--allowed-local-media-path`.")
        # Resolve before asking whether the file exists: what lies outside stays unknown.
        try:
            resolved = path.resolve()
        except RuntimeError:  # a circle of links
            raise InvalidMedia(f"{path}: no such file.") from None
        if not resolved.is_relative_to(root.resolve()):
            raise InvalidMedia(f"The file path {path} must be a subpath of `--allowed-local-media-path` {root}.")
        try:
            if not resolved.is_file():
                raise InvalidMedia(f"{path}: no such file.")
            if resolved.stat().st_size > self.max_bytes:
                raise self._too_large(str(path), resolved.stat().st_size)
            return resolved.read_bytes()
        except OSError as error:
            raise InvalidMedia(f"{path} cannot be read ({error.strerror}).") from None

    def _download(self, url: str) -> bytes:
        with httpx.Client(timeout=self.timeout, follow_redirects=False, trust_env=False) as client:
            for _ in range(self.max_redirects + 1):
                try:
                    body, location = self._get(client, url)
                except httpx.HTTPError as error:
                    raise InvalidMedia(f"{_short(url)} cannot be fetched: {type(error).__name__}: {error}.") from None
                if location is None:
                    return body
                url = urljoin(url, location)
        raise InvalidMedia(f"{_short(url)}: more than {self.max_redirects} redirects; give the final address.")

    def _get(self, client: httpx.Client, url: str) -> tuple[bytes, str | None]:
        """One hop: the body, or where it redirects to."""
        parts = urlsplit(url)
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise InvalidMedia(f"{_short(url)}: The URL must be either a HTTP, data or file URL.")
        address = self._checked_address(host)
        literal = f"[{address}]" if ":" in address else address
        netloc = literal if parts.port is None else f"{literal}:{parts.port}"
        pinned = urlunsplit((parts.scheme, netloc, parts.path or "/", parts.query, ""))
        name = parts.netloc.rpartition("@")[2].encode("idna").decode()
        headers = {**_HEADERS, "Host": name}
        with client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": host}) as response:
            if response.has_redirect_location:
                return b"", response.headers["location"]
            if response.status_code != 200:
                raise InvalidMedia(f"{_short(url)} answered with HTTP status {response.status_code}.")
            return self._read_body(response, url), None

    def _read_body(self, response: httpx.Response, url: str) -> bytes:
        declared = int(response.headers.get("content-length", 0))
        if declared > self.max_bytes:
            raise self._too_large(_short(url), declared)
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self.max_bytes:
                raise self._too_large(_short(url), len(body))
        return bytes(body)

    def _checked_address(self, host: str) -> str:
        domains = self.allowed_media_domains
        if domains is not None and host not in domains:
            raise InvalidMedia(
                f"The URL must be from one of the allowed domains: {list(domains)}. Input URL domain: {host}"
            )
        try:
            found = [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            raise InvalidMedia(f"{host}: this host name cannot be resolved ({error}).") from None
        if not self.allow_private_addresses:
            for address in found:
                if not _is_public(address):
                    raise InvalidMedia(f"{host} is at {address}, which is not a public address: refused.")
        return found[0]  # the resolver puts first what this machine can reach

    def _too_large(self, name: str, size: int) -> InvalidMedia:
        return InvalidMedia(f"{name} has {size} bytes or more, the limit is {self.max_bytes}: send a smaller file.")


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if inner is None and any(ip in network for network in _HOLDS_IPV4):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    reachable = inner or ip
    return reachable.is_global and not ip.is_multicast and not getattr(ip, "is_site_local", False)


def _short(url: str) -> str:
    return url if len(url) <= 120 else url[:117] + "..."
