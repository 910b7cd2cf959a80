"""Pictures to tiles: choose a grid, resize, cut.

Dynamic tiling follows OpenGVLab/InternVL (`dynamic_preprocess` of the model cards and of
`internvl/train/dataset.py`): candidate grids, aspect rule, tie rule, bicubic resize, thumbnail last.
Tiles leave here as uint8; normalisation happens on the device.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.resize import Resize, by_pillow
from tilewise.types import TileRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewise.inputs.media.images import UnopenedFile
    from tilewise.types import Grid

MAX_TILES = 128
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")
_OVERRIDES: dict[str, tuple[str, type]] = {
    "min_dynamic_patch": ("min_tiles", int),
    "max_dynamic_patch": ("max_tiles", int),
    "dynamic_image_size": ("dynamic", bool),
    "use_thumbnail": ("thumbnail", bool),
}


@dataclass(frozen=True, slots=True)
class Tiling:
    """The rules by which a picture becomes tiles. Defaults are those of every released InternVL2 to 3.5 checkpoint."""

    tile_size: int = 448
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    dynamic: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise InvalidRequest(
                f"min_dynamic_patch={self.min_tiles} and max_dynamic_patch={self.max_tiles}: "
                "need 1 <= min_dynamic_patch <= max_dynamic_patch."
            )
        if self.max_tiles > MAX_TILES:
            raise InvalidRequest(
                f"max_dynamic_patch={self.max_tiles} is above the limit of {MAX_TILES} tiles a picture; ask for fewer."
            )

    def override(self, options: dict[str, Any] | None) -> Tiling:
        """Return this tiling with a request's `mm_processor_kwargs` (vLLM's names) applied."""
        changes: dict[str, Any] = {}
        for name, value in (options or {}).items():
            if name not in _OVERRIDES:
                raise UnknownOption.named(name, _OVERRIDES, "mm_processor_kwargs")
            field, kind = _OVERRIDES[name]
            value = lax_number(value)
            if type(value) is not kind:
                raise InvalidRequest(f"mm_processor_kwargs: {name}={value!r} must be of type {kind.__name__}.")
            changes[field] = value
        if changes.get("max_tiles", self.max_tiles) < self.min_tiles and "min_tiles" not in changes:
            changes["min_tiles"] = 1
        return replace(self, **changes)

    def at_most(self, max_tiles: int) -> Tiling:
        """Return this tiling with no more than so many tiles a picture."""
        return self if max_tiles >= self.max_tiles else self.override({"max_dynamic_patch": max_tiles})


def lax_number(value: Any) -> Any:
    """Return the number that a text spells, a whole one without its point; return anything else as it is.

    >>> lax_number("4"), lax_number(2.0), lax_number("0.5"), lax_number("four")
    (4, 2, 0.5, 'four')
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if "." in value else int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True, slots=True)
class UnopenedPicture:
    """A picture that is opened where it is cut."""

    file: UnopenedFile
    opened: Callable[[dict[str, Any]], None] = field(repr=False, compare=False)
    """Called with what is told of the file once it is opened. It may raise InvalidMedia."""


@dataclass(frozen=True, slots=True)
class LimitedPicture:
    """A picture that is cut in its own way, whatever others of its request are."""

    image: Image.Image | UnopenedPicture
    max_tiles: int | None = None
    """Most tiles of this picture; None = as many as others."""
    options: tuple[tuple[str, int], ...] = ()
    """`mm_processor_kwargs` for this picture alone."""

    def tiling(self, usual: Tiling) -> Tiling:
        own = usual.override(dict(self.options))
        return own if self.max_tiles is None else own.at_most(self.max_tiles)


@lru_cache(maxsize=64)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """Return all (columns, rows) with min <= columns * rows <= max, fewest tiles first."""
    sides = range(1, max_tiles + 1)
    grids = [(cols, rows) for cols in sides for rows in sides if min_tiles <= cols * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(width: int, height: int, tiling: Tiling) -> Grid:
    """Return the (columns, rows) of the nearest aspect ratio; an exact tie goes to the larger if the picture fills it.

    "Fills" is OpenGVLab's rule: more pixels than half of what the larger grid holds.
    """
    if not tiling.dynamic:
        return (1, 1)
    best, best_difference = (1, 1), float("inf")
    aspect = width / height
    for cols, rows in candidate_grids(tiling.min_tiles, tiling.max_tiles):
        difference = abs(aspect - cols / rows)
        fills = width * height > 0.5 * tiling.tile_size**2 * cols * rows
        if difference < best_difference or (difference == best_difference and fills):
            best, best_difference = (cols, rows), difference
    return best


def count_tiles(grid: Grid, thumbnail: bool) -> int:
    """Return the tiles of a picture that is cut into `grid`; a thumbnail comes on top unless there is a single tile."""
    tiles = grid[0] * grid[1]
    return tiles + 1 if thumbnail and tiles > 1 else tiles


def tile_image(image: Image.Image, tiling: Tiling, resize: Resize = by_pillow) -> NDArray[np.uint8]:
    """Cut an RGB picture into tiles: row by row, then the thumbnail. Returns uint8 `[tiles, size, size, 3]`."""
    grid = choose_grid(image.width, image.height, tiling)
    tiles = np.empty((count_tiles(grid, tiling.thumbnail), tiling.tile_size, tiling.tile_size, 3), np.uint8)
    cut_into(tiles, image, tiling, resize)
    return tiles


def cut_into(
    places: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], image: Image.Image, tiling: Tiling, resize: Resize
) -> int:
    """Cut an RGB picture into tiles, one in each place, uint8 `[size, size, 3]`; return how many there are."""
    size = tiling.tile_size
    cols, rows = grid = choose_grid(image.width, image.height, tiling)
    count = count_tiles(grid, tiling.thumbnail)
    canvas, *small = resize(image, (cols * size, rows * size), *[(size, size)] * (count - rows * cols))
    for number in range(rows * cols):
        top, left = number // cols * size, number % cols * size
        places[number][:] = canvas[top : top + size, left : left + size]
    if small:
        places[count - 1][:] = small[0]
    return count


def content_digest(kind: str, how: object, content: bytes | memoryview, size: int) -> bytes:
    """Return `size` bytes of SHA-256 over content, its kind, and how it is to be understood: anything with a `repr`.

    What is known by its digest is shared between users, so nobody may forge one. For SHA-256 processors have
    instructions (x86 since 2017, servers of ARM), with which it reads three times as much a second as BLAKE2b; without
    them both are as fast.
    """
    digest = hashlib.sha256(repr((kind, how)).encode())
    digest.update(content)
    return digest.digest()[:size]


def tile_digest(pixels: NDArray[np.uint8]) -> bytes:
    """Return 16 bytes of SHA-256 over shape and pixels: equal tiles of any picture, request or user share them."""
    return content_digest("tile", pixels.shape, np.ascontiguousarray(pixels).data, 16)


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """A picture that comes encoded: rows of its tiles, thumbnail last."""

    tiles: tuple[TileRows, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tile.num_bytes for tile in self.tiles)


Picture = Image.Image | UnopenedPicture | LimitedPicture | EncodedPicture
Media = Picture | list[Image.Image]
"""A picture, or the chosen frames of a video."""


def tiles_of(picture: Picture, usual: Tiling) -> int | None:
    """Return the tiles that a picture becomes, without cutting it; None = that is known once it is opened."""
    if isinstance(picture, EncodedPicture):
        return len(picture.tiles)
    image, tiling = (picture.image, picture.tiling(usual)) if isinstance(picture, LimitedPicture) else (picture, usual)
    if isinstance(image, UnopenedPicture):
        return None
    return count_tiles(choose_grid(image.width, image.height, tiling), tiling.thumbnail)
