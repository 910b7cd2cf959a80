"""HTTP to one hub: answers, refusals, and files that go on where they broke off."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tilewise.errors import DownloadFailed
from tilewise.weights.hubs.snapshot import RemoteFile

PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds before each new try; a try that brought bytes starts the count again."""
_UNKNOWN_NAME = re.compile(r"\[Errno -\d+\]|name or service|name resolution|nodename|getaddrinfo", re.IGNORECASE)
_MARKS = re.compile(r"\[[^\]]*\] *|\(_\w+\.c:\d+\)")  # [Errno 111], [SSL: ...], (_ssl.c:1006)
_TIMEOUT = httpx.Timeout(15.0)  # for each read, not for the whole


class HubUnreachable(Exception):
    """The hub gave no answer, a broken one, or one that says to come back later."""


class HubRefused(Exception):
    """The hub gave an answer that trying again will not change."""

    def __init__(self, url: str, status: int, code: str = "", message: str = "") -> None:
        super().__init__(f"{url} answers {status}{f' ({message})' if message else ''}")
        self.status = status
        self.code = code
        """Hugging Face's own word for the reason, such as GatedRepo."""


class Stopped(Exception):
    """Somebody called `Web.stop`."""


class Web:
    """A session with one hub. May be used by several threads at once."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        # Bodies as they are stored: a compressed one has another length than the hub lists.
        own = {"User-Agent": "tilewise", "Accept-Encoding": "identity"}
        self._client = httpx.Client(headers={**own, **headers}, follow_redirects=True, timeout=_TIMEOUT)
        self._stopped = threading.Event()

    def close(self) -> None:
        self._client.close()

    def stop(self) -> None:
        """Let every `fetch` raise Stopped at its next piece."""
        self._stopped.set()

    def json(self, url: str, patient: bool = True) -> Any:
        """Return the JSON behind a URL.

        Raises HubRefused at once, and HubUnreachable at once or, if patient, after all pauses.
        """
        pauses = iter(PAUSES if patient else ())
        while True:
            try:
                with self._get(url) as response:
                    response.read()
                    return response.json()
            except HubUnreachable:
                if (pause := next(pauses, None)) is None:
                    raise
                self._stopped.wait(pause)
            except ValueError:
                raise HubRefused(
                    url, response.status_code, message="no JSON; is this the hub, or a login page?"
                ) from None

    def fetch(self, file: RemoteFile, partial: Path, advance: Callable[[int], None]) -> None:
        """Make `partial` as long as the file, from whatever part of it is there.

        `advance` is called with the number of bytes that are there or came, below zero when they have to come again.
        Raises HubRefused, HubUnreachable when no try in a row brings anything, Stopped, and DownloadFailed for a file
        of another size than listed.
        """
        partial.touch()
        if partial.stat().st_size > file.size:
            partial.write_bytes(b"")
        have, failures = partial.stat().st_size, 0
        advance(have)
        while have < file.size:
            if self._stopped.is_set():
                raise Stopped
            try:
                self._append(file, partial, advance)
            except HubUnreachable:
                failures = 0 if partial.stat().st_size > have else failures + 1
                if failures > len(PAUSES):
                    raise
                self._stopped.wait(PAUSES[max(failures - 1, 0)])
            have = partial.stat().st_size

    def _append(self, file: RemoteFile, partial: Path, advance: Callable[[int], None]) -> None:
        """Request once what is missing; what arrives is on disk even if the rest does not come."""
        have = partial.stat().st_size
        with self._get(file.url, have) as response, partial.open("ab") as out:
            if have and response.status_code != 206:  # the server knows no ranges: all over again
                out.truncate(0)
                advance(-have)
                have = 0
            _check_announced(response, file, have)
            for piece in response.iter_bytes():  # of no set size: one that is being filled would be lost in a break
                if self._stopped.is_set():
                    raise Stopped
                if have + len(piece) > file.size:
                    raise _wrong_size(file, "more")
                out.write(piece)
                advance(len(piece))
                have += len(piece)
        if have < file.size:
            raise HubUnreachable(f"{response.url.host} closed the connection at {have} of {file.size} bytes")

    @contextmanager
    def _get(self, url: str, start: int = 0) -> Iterator[httpx.Response]:
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                status = response.status_code
                if status in (408, 429) or status >= 500:
                    raise HubUnreachable(f"{response.url.host} answers {status}")
                if status >= 400:
                    said = response.headers
                    raise HubRefused(url, status, said.get("X-Error-Code", ""), said.get("X-Error-Message", ""))
                yield response
        except (httpx.RequestError, httpx.InvalidURL) as error:
            host = url.split("/")[2].rpartition("@")[2] if url.count("/") > 2 else url
            raise HubUnreachable(_problem(host, error)) from None


def _problem(host: str, error: Exception) -> str:
    """Return why a host does not answer; what the library says has numbers and places of its source in it."""
    said = str(error)
    if _UNKNOWN_NAME.search(said):
        return f"the name {host} cannot be found, as without a network"
    if isinstance(error, httpx.TimeoutException):
        return f"{host} does not answer in time"
    if "certificate" in said.lower():
        return f"the certificate of {host} is not accepted"
    if isinstance(error, httpx.ConnectError):
        return f"{host} cannot be reached ({_MARKS.sub('', said).strip(' .').lower() or 'no connection'})"
    if isinstance(error, httpx.ProtocolError):
        return f"{host} closed the connection, or answered with something that is no HTTP"
    if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol)):
        return f"{host}: {_MARKS.sub('', said)}"
    return f"the connection to {host} broke"


def _check_announced(response: httpx.Response, file: RemoteFile, start: int) -> None:
    """Raise DownloadFailed if the server is about to send another file, or another part of it."""
    if response.status_code == 206:
        said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if said is None or int(said[1]) != start:
            raise DownloadFailed(f"{file.url} was asked for bytes from {start} on, and sent others. Try again.")
        total = said[2]
    elif "Content-Encoding" in response.headers:  # the length is that of something else
        return
    else:
        total = response.headers.get("Content-Length", "*")
    if total not in ("*", str(file.size)):
        raise _wrong_size(file, total)


def _wrong_size(file: RemoteFile, found: str) -> DownloadFailed:
    return DownloadFailed(
        f"{file.name} should have {file.size} bytes as the hub lists it, but {file.url} sends {found}. Try again "
        "later; if it stays so, the hub's copy is damaged."
    )
