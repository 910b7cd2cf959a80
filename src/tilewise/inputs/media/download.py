"""Downloading one file: every redirect is checked as the first address was, and all of it has one deadline."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urljoin

import httpcore

from tilewise.errors import InvalidMedia
from tilewise.inputs.media.connection import Proxies, Proxy, TryAgain, look_up, open_response
from tilewise.inputs.media.file_kind import is_page
from tilewise.inputs.media.hosts import AllowedHosts, WebAddress, is_address, short
from tilewise.inputs.media.limits import Deadline, MediaBudget, MediaLimits

_PIECE = 1 << 16  # bytes that are unpacked at a time, so that the limits have a say in between
_MOST_FILES = 1000  # of gzip that make one file together; each costs a copy of what follows
_GZIP, _RAW = zlib.MAX_WBITS | 32, -zlib.MAX_WBITS
_PLAIN, _PACKED = ("", "identity"), ("gzip", "x-gzip", "deflate")
_REDIRECTS = (301, 302, 303, 307, 308)
_FIRST_PAUSE = 0.1  # seconds before the first retry, twice as many before each further one
_HEAD = 512  # bytes in which a page says that it is one
_PATIENCE = 1.0  # seconds for a name that a proxy may know better: behind one there is often no resolver that answers


def unpacked(chunks: Iterable[bytes], encoding: str, name: str) -> Iterator[bytes]:
    """Return a body without its Content-Encoding (RFC 9110, section 8.4.1), in pieces of at most 64 KiB if it has one.

    Pieces may be empty, one at least for each chunk. Raises InvalidMedia for another encoding, and for what is damaged
    or cut short.
    """
    encoding = encoding.strip().lower()
    if encoding in _PLAIN:
        return iter(chunks)
    if encoding not in _PACKED:
        raise InvalidMedia(
            f"{name} came in the Content-Encoding {encoding[:40]!a}, though it was asked for as it is; gzip and "
            "deflate are read: let the host send the file as it is, or send it as a data URL."
        )
    return _inflated(chunks, encoding, name)


def _inflated(chunks: Iterable[bytes], encoding: str, name: str) -> Iterator[bytes]:
    stream, begun, files = None, b"", 1
    try:
        for chunk in chunks:
            if stream is None:  # two bytes tell whether deflate has its zlib frame, which some hosts leave out
                begun += chunk
                if len(begun) < 2:
                    continue
                framed = encoding != "deflate" or (begun[0] & 15 == 8 and int.from_bytes(begun[:2], "big") % 31 == 0)
                stream, chunk = zlib.decompressobj(_GZIP if framed else _RAW), begun
            yield b""
            while chunk:
                yield stream.decompress(chunk, _PIECE)
                chunk = stream.unconsumed_tail
                if stream.eof and stream.unused_data[:2] == b"\x1f\x8b":  # several files of gzip make one
                    chunk, stream, files = stream.unused_data, zlib.decompressobj(_GZIP), files + 1
                    if files > _MOST_FILES:
                        raise zlib.error
                elif len(stream.unused_data) > 1:  # something was hung on behind
                    return
        while stream is not None and not stream.eof and (piece := stream.decompress(b"", _PIECE)):
            yield piece
    except zlib.error:
        raise InvalidMedia(f"{name} came as {encoding} that is damaged: send the file as it is.") from None
    if stream is None or not stream.eof:
        raise InvalidMedia(f"{name} came as {encoding} that is cut short: send the whole file.")


@dataclass(frozen=True, slots=True)
class Download:
    """A fetcher of files from the web, with its rules."""

    hosts: AllowedHosts
    private: bool
    max_redirects: int
    proxies: Proxies = Proxies()

    def fetch(self, url: str, budget: MediaBudget, deadline: Deadline) -> bytes:
        """Return the file behind a URL.

        Raises InvalidMedia for what is refused, missing, too large or too slow, and Cancelled.
        """
        for _ in range(self.max_redirects + 1):
            body, location = self._hop(url, budget, deadline)
            if location is None:
                return body
            url = _join(url, location)
        raise InvalidMedia(f"{short(url)}: more than {self.max_redirects} redirects; give the final address.")

    def _hop(self, url: str, budget: MediaBudget, deadline: Deadline) -> tuple[bytes, str | None]:
        """Return the body, or where it redirects to; try again when the connection or the server fails."""
        retries = budget.limits.retries
        for number in range(retries + 1):
            try:
                return self._once(url, budget, deadline)
            except TryAgain as error:
                if number == retries:
                    raise InvalidMedia(f"{short(url)} {error}.") from None
                deadline.pause(_FIRST_PAUSE * 2**number)
        raise AssertionError("unreachable")

    def _once(self, url: str, budget: MediaBudget, deadline: Deadline) -> tuple[bytes, str | None]:
        address = WebAddress.of(url)
        self.hosts.check(address)
        proxy = self.proxies.of_address(address)
        numbers = self._numbers(address, deadline) if proxy is None else self._behind(proxy, address, deadline)
        with open_response(address, numbers, deadline, proxy) as response:
            headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in headers:
                return b"", headers[b"location"]
            if response.status >= 500:
                raise TryAgain(f"answered with HTTP status {response.status}")
            if response.status != 200:
                raise InvalidMedia(f"{short(url)} answered with HTTP status {response.status}.")
            return _body(response, headers, url, budget), None

    def _numbers(self, address: WebAddress, deadline: Deadline) -> tuple[str, ...]:
        """Return the checked addresses of the host, to which the connection goes."""
        numbers = look_up(address.host, deadline)
        self.hosts.check_numbers(address, numbers, self.private)
        return numbers

    def _behind(self, proxy: Proxy, address: WebAddress, deadline: Deadline) -> tuple[str, ...]:
        """Return addresses of the proxy, once the host is checked as far as it can be seen from here.

        A host that is written as an address is checked as ever; a name that nobody here can resolve is left to the
        proxy, unless it is one of a private network.
        """
        try:
            numbers = look_up(address.host, deadline, _PATIENCE)
        except InvalidMedia:
            deadline.left()  # it may be this that was refused
            if is_address(address.host):
                raise
            if not self.private:
                self.hosts.check_unresolved(address)
        else:
            self.hosts.check_numbers(address, numbers, self.private)
        return look_up(proxy.host, deadline)


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise InvalidMedia(
            f"{short(url)} redirects to {short(location)!r}, which is not a valid URL ({error})."
        ) from None


def _body(response: httpcore.Response, headers: dict[bytes, str], url: str, budget: MediaBudget) -> bytes:
    limit = budget.limits.file_bytes
    check_size(short(url), int(headers.get(b"content-length", 0)), limit)
    body = bytearray()
    for chunk in unpacked(_limited(response, url, limit), headers.get(b"content-encoding", ""), short(url)):
        budget.take_bytes(len(chunk))
        fresh = len(body) < _HEAD
        body += chunk
        check_size(short(url), len(body), limit)
        if fresh:
            _refuse_page(bytes(body[:_HEAD]), headers, url)
    return bytes(body)


def _limited(response: httpcore.Response, url: str, limit: int) -> Iterator[bytes]:
    """Yield the body as it comes; what is compressed is held to the limit twice, as some of it unpacks to nothing."""
    size = 0
    for chunk in response.iter_stream():
        size += len(chunk)
        check_size(short(url), size, limit)
        yield chunk


def check_size(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise InvalidMedia(
            f"{name} has {size} bytes or more, the limit is {limit}: send a smaller file, or raise "
            f"{MediaLimits.variable('file_bytes')}."
        )


def _refuse_page(head: bytes, headers: dict[bytes, str], url: str) -> None:
    """Raise InvalidMedia for the commonest mistake: the address of the page that shows a picture."""
    if is_page(head):
        kind = headers.get(b"content-type", "none")
        raise InvalidMedia(
            f"{short(url)} is no picture or video (Content-Type: {kind[:80]}): it is an HTML page: use the address of "
            f"the file itself{_raw_link(url)}."
        )


def _raw_link(url: str) -> str:
    """Return the file's own address on a hub, which shows it under /blob/ and gives it under another name; else ""."""
    if "/blob/" not in url:
        return ""
    raw = "/raw/" if url.startswith(("https://github.com/", "http://github.com/")) else "/resolve/"
    return f", {short(url.replace('/blob/', raw, 1))}"
