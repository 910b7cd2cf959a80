"""Server-sent events: from the bytes of a response to the data of its events."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Not str.splitlines, which also breaks lines at characters that JSON may hold as they are (U+2028, U+0085). A CR that
# ends the bytes so far may be half of a CRLF: the next bytes tell.
_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")


class EventReader:
    """A reader of one response, which takes its bytes as they come and keeps what is not yet a whole event."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of each event that is whole now; comments, names and ids of events are passed over."""
        *lines, self._rest = _LINE_END.split(self._rest + chunk)
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
            elif not line and self._data:
                event = b"\n".join(self._data).decode("utf-8", "replace")
                self._data.clear()
                yield event


def read_events(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the data of each event of a response.

    >>> list(read_events([b": ping\\n\\ndata: a", b"b\\ndata: c\\n\\nda"]))
    ['ab\\nc']
    """
    reader = EventReader()
    for chunk in chunks:
        yield from reader.feed(chunk)
