"""Server-sent events: bytes of a response to the data of its events."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Not str.splitlines, which also breaks lines at characters that JSON may hold as they are (U+2028, U+0085). A CR that
# ends the bytes so far may be half of a CRLF: the next bytes tell.
_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")


def read_events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event that is whole; comments, names and ids of events are passed over.

    >>> list(read_events([b": ping\\n\\ndata: a", b"b\\ndata: c\\n\\nda"]))
    ['ab\\nc']
    """
    data: list[bytes] = []
    for line in _lines(chunks):
        if line.startswith(b"data:"):
            data.append(line.removeprefix(b"data:").removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data).decode("utf-8", "replace")
            data.clear()


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = _LINE_END.split(rest + chunk)
        yield from lines
