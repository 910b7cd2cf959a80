"""Pictures and videos of a question: local files go into the request, URLs are left to the server."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any, Literal

from tilewise.errors import InvalidMedia

_SCHEMES = ("http://", "https://", "file://", "data:")


def media_part(kind: Literal["image", "video"], source: str) -> dict[str, Any]:
    """Raises InvalidMedia for a file that cannot be read, or is something else by its name."""
    source = source.strip().strip("\"'")
    url = source if source.startswith(_SCHEMES) else _data_url(kind, Path(source).expanduser())
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _data_url(kind: str, path: Path) -> str:
    guessed = mimetypes.guess_type(path)[0] or "a file of unknown kind"
    if not guessed.startswith(f"{kind}/") and guessed != "image/gif":  # which is a picture, or a film
        raise InvalidMedia(f"{path} is {guessed} by its name, no {kind}.")
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InvalidMedia(f"{path}: {error.strerror}.") from None
    return f"data:{guessed};base64,{data}"
