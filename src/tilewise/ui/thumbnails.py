"""Pictures as the web chat shows them: small, and decoded where they can do no harm.

Whoever sees the page can send it files, with a key of the server or without. So they are opened in a process of their
own that can open, start and reach nothing, as the server opens those of its requests.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from tilewise.errors import InvalidMedia, TilewiseError
from tilewise.inputs.media.images import ImageLimits, open_image
from tilewise.inputs.sandbox import run_confined

_LONGEST = 960  # pixels of a side that a browser is sent
_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture scaled down to what a page shows of it."""

    size: tuple[int, int]
    """Width and height of the whole picture in pixels."""
    data: str
    """The small picture as WEBP, in base64."""


def thumbnail_of(file: str) -> Thumbnail:
    """Return a picture's thumbnail; the last ones are kept. Raises InvalidMedia for a file that is no picture."""
    path = Path(file)
    stat = path.stat()
    found = _decoded(path, stat.st_mtime_ns, stat.st_size)
    if "error" in found:
        raise InvalidMedia(found["error"])
    return Thumbnail((found["width"], found["height"]), found["data"])


@lru_cache(maxsize=64)
def _decoded(path: Path, modified: int, size: int) -> dict[str, Any]:
    """Decode a file as it was when it was modified last."""
    job = {"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()}
    missing = {"error": f"{path.name} could not be drawn within {_SECONDS} seconds."}
    found: list[dict[str, Any]] = run_confined(draw, job, 1, missing, _SECONDS)
    return found[0]


def draw(job: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the picture of `{"name", "data"}` as `{"width", "height", "data"}`; or `{"error"}`. For `run_confined`."""
    _small(Image.new("RGB", (8, 8)))  # loads what encodes, before no file can be opened
    Image.init()

    def results() -> Iterator[dict[str, Any]]:
        try:
            picture = open_image(base64.b64decode(job["data"]), ImageLimits(), name=job["name"])
            yield {"width": picture.width, "height": picture.height, "data": _small(picture)}
        except TilewiseError as error:
            yield {"error": str(error)}

    return results()


def _small(picture: Image.Image) -> str:
    shown = picture.convert("RGB")
    shown.thumbnail((_LONGEST, _LONGEST))
    content = io.BytesIO()
    shown.save(content, "WEBP", quality=80)
    return base64.b64encode(content.getvalue()).decode()
