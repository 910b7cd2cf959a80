"""Pictures in, tiles out: decode, orient, flatten to RGB, choose a grid, cut.

Dynamic tiling follows OpenGVLab/InternVL (`dynamic_preprocess` of the model cards and of
`internvl/train/dataset.py`): candidate grids, aspect rule, tie rule, bicubic resize, thumbnail last.
Tiles leave here as uint8; normalisation happens on the device.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tilewise.errors import InvalidConfig, InvalidMedia, InvalidRequest, UnknownOption
from tilewise.host import require_extra
from tilewise.inputs.file_kind import is_heic, kind_of
from tilewise.inputs.orientation import DAMAGE, upright
from tilewise.resize import Resize, by_pillow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewise.config import EngineConfig
    from tilewise.inputs.media_limits import MediaBudget
    from tilewise.types import Grid

Colour = tuple[int, int, int]

# Formats whose frames are moments or pages. (MPO, a phone's format, keeps a depth map as second frame.)
_SEVERAL_FRAMES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"}
# Everything else that Pillow knows is rare or dangerous (PostScript starts an interpreter).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")
_FORMATS_READ = "Formats that are read: JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC, JPEG 2000, PPM, ICO, TGA."
_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 100  # cameras and web sites write about ten
_OBJECT = re.compile(r"'?<[^<>]*>'?|\b0x[0-9a-fA-F]{5,}\b")
_PIXELS = re.compile(r"(\d+) pixels")  # the first number in Pillow's refusal
_ERRNO = re.compile(r"\[Errno -?\d+\] *")
_OPENING = threading.Lock()  # filters of warnings belong to the process; opening reads a header


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
        current = {name: getattr(self, name) for name in self.__slots__}
        return Tiling(**{**current, **changes})

    def at_most(self, max_tiles: int) -> Tiling:
        """Return this tiling with no more than so many tiles a picture."""
        return self if max_tiles >= self.max_tiles else self.override({"max_dynamic_patch": max_tiles})


MAX_TILES = 128
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


def lax_number(value: Any) -> Any:
    """Return the number that a text spells, a whole one without its point; return anything else as it is.

    >>> lax_number("4"), lax_number(2.0), lax_number("0.5"), lax_number("four")
    (4, 2, 0.5, 'four')
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if "." in value else int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


_OVERRIDES: dict[str, tuple[str, type]] = {
    "min_dynamic_patch": ("min_tiles", int),
    "max_dynamic_patch": ("max_tiles", int),
    "dynamic_image_size": ("dynamic", bool),
    "use_thumbnail": ("thumbnail", bool),
}


@dataclass(frozen=True, slots=True)
class LimitedPicture:
    """A picture that is cut in its own way, whatever others of its request are."""

    image: Image.Image
    max_tiles: int | None = None
    """Most tiles of this picture; None = as many as others."""
    options: tuple[tuple[str, int], ...] = ()
    """`mm_processor_kwargs` for this picture alone."""

    def tiling(self, usual: Tiling) -> Tiling:
        own = usual.override(dict(self.options))
        return own if self.max_tiles is None else own.at_most(self.max_tiles)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of a picture. The defaults stop decompression bombs; thin pictures are resized as the reference does."""

    max_pixels: int = 89_478_485  # Pillow's own warning level: 1 GiB of RGBA, a quarter of it
    max_aspect: float | None = None
    """The longer side over the shorter one; None = no limit."""
    max_side: int = 2**18  # resizing keeps 32 bytes of coefficients for each pixel of a side

    @classmethod
    def of(cls, config: EngineConfig) -> ImageLimits:
        return cls(config.max_image_pixels, config.max_image_aspect_ratio)


def open_image(
    data: bytes | str | Path, limits: ImageLimits = ImageLimits(), budget: MediaBudget | None = None, name: str = ""
) -> Image.Image:
    """Decode a picture from bytes or from a local path, checking `limits` before any pixel is decoded.

    Of an animation or of several pages this is the first frame (`further_frames` tells). Raises InvalidMedia for what
    is not a picture, is cut short or too large, and for what is more than its request has left. `name` is what errors
    call it.
    """
    name = name or ("the picture" if isinstance(data, bytes) else f"{data}")
    content = b""
    try:
        content = data if isinstance(data, bytes) else Path(data).read_bytes()
        image = _open_heic(content, name) if is_heic(content) else _open_header(content)
        check_size(image.size, limits, name)
        _check_scans(image, content, name)
        if budget is not None:
            budget.take_decoded(decoded_bytes(image))
        image.load()
        check_size(image.size, limits, name)  # HEIC may come out in another size than its header said
    except FileNotFoundError:
        raise InvalidMedia(f"{name}: no such file.") from None
    except UnidentifiedImageError:
        raise InvalidMedia(f"{name} {_no_picture(content)}") from None
    except Image.DecompressionBombError as error:
        found = _PIXELS.search(str(error))
        limit = min(limits.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or limits.max_pixels))
        size = found[1] if found else "more"
        raise InvalidMedia(f"{name} has {size} pixels, the limit is {limit}: scale it down.") from None
    except DAMAGE as error:
        if isinstance(error, InvalidMedia):
            raise
        kind = kind_of(content)
        if kind is not None and kind.family != "picture":  # a format without a signature of its own has taken it
            raise InvalidMedia(f"{name} {_no_picture(content)}") from None
        raise InvalidMedia(f"{name} is damaged or cut short ({reason(error)}); send the whole file again.") from None
    return image


def _open_header(content: bytes) -> Image.Image:
    with _OPENING, warnings.catch_warnings():
        # Pillow warns from its own limit on; ours has the say. At twice that Pillow refuses, whatever we allow.
        # What it warns of besides, it mends.
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(content), formats=_FORMATS)


def _open_heic(content: bytes, name: str) -> Image.Image:
    """Open it by the library's own class: to register that would change what Pillow reads elsewhere in this process."""
    try:
        require_extra("pillow_heif", "heic", f"{name} is a HEIC picture. To read one")
    except InvalidConfig as error:
        raise InvalidMedia(f"{error} Or send it as JPEG.") from None
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return image


def further_frames(image: Image.Image) -> bool:
    """True if a picture is the first of several frames or pages; to count them, they would have to be walked."""
    return image.format in _SEVERAL_FRAMES and bool(getattr(image, "is_animated", False))


def decoded_bytes(image: Image.Image) -> int:
    """Return the bytes of a picture's pixels, as Pillow keeps them."""
    return image.width * image.height * (1 if image.mode in ("1", "L", "P") else 4)


def reason(error: Exception) -> str:
    """Return a library's words without its objects: `<_io.BytesIO object at 0x7f...>` tells where memory is."""
    words = getattr(error, "strerror", None) or _ERRNO.sub("", str(error))
    words = _OBJECT.sub("it", words).strip()
    return words[:200] or type(error).__name__


def _check_scans(image: Image.Image, content: bytes, name: str) -> None:
    """Raise InvalidMedia for a JPEG of too many scans: each costs a few bytes, and decodes the picture once more."""
    if image.format in ("JPEG", "MPO") and content.count(_START_OF_SCAN) > _MAX_SCANS:
        raise InvalidMedia(f"{name} is a JPEG of more than {_MAX_SCANS} scans, the limit: save it anew.")


def check_size(size: tuple[int, int], limits: ImageLimits, name: str = "the picture") -> None:
    """Raise InvalidMedia unless a width and height are within `limits`."""
    width, height = size
    if width * height > limits.max_pixels:
        raise InvalidMedia(
            f"{name} has {width}x{height} = {width * height} pixels, the limit is {limits.max_pixels}: "
            "scale it down, or raise max_image_pixels."
        )
    if min(width, height) < 1:
        raise InvalidMedia(f"{name} is {width}x{height}: each side needs at least one pixel.")
    if max(width, height) > limits.max_side:
        raise InvalidMedia(
            f"{name} is {width}x{height}, the limit of a side is {limits.max_side} pixels: cut it into pieces."
        )
    aspect = max(width, height) / min(width, height)
    if limits.max_aspect is not None and aspect > limits.max_aspect:
        raise InvalidMedia(
            f"{name} is {width}x{height}: its sides differ by more than {limits.max_aspect:g}:1, the limit; cut it "
            "into pieces, or raise max_image_aspect_ratio."
        )


def _no_picture(content: bytes) -> str:
    kind = kind_of(content)
    if kind is None:
        return f"is not a picture that can be read. {_FORMATS_READ}"
    if kind.family == "video":
        return f"is not a picture that can be read (it is {kind.name}): send it as a video_url."
    return f"is not a picture that can be read (it is {kind.name}). {_FORMATS_READ}"


def to_rgb(image: Image.Image, exif_orientation: bool = True) -> Image.Image:
    """Convert any Pillow mode to RGB: transparency over white, 16-bit and float grey scaled to 8 bits.

    `exif_orientation` turns the picture as its camera says, as browsers show it. OpenGVLab's inference does not.
    """
    if exif_orientation:
        image = upright(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return flatten(image)
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_to_rgb(np.nan_to_num(np.asarray(image)))
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    return image.convert("RGB")


def flatten(image: Image.Image, background: Colour = (255, 255, 255)) -> Image.Image:
    """Return a picture with transparency, laid over a colour."""
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")


def _grey_to_rgb(values: NDArray[Any]) -> Image.Image:
    """Convert deep grey: values above 255 are read as 16 bits, float values of at most 1 as a fraction of white."""
    peak = float(values.max(initial=0))
    deep = peak > 255 or values.dtype.itemsize == 2
    scale = 1 / 257 if deep else 255.0 if values.dtype.kind == "f" and peak <= 1 else 1.0
    return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8)).convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # only with inPlace
    return converted


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
    size = tiling.tile_size
    cols, rows = grid = choose_grid(image.width, image.height, tiling)
    tiles = np.empty((count_tiles(grid, tiling.thumbnail), size, size, 3), np.uint8)
    thumbnails = len(tiles) - rows * cols
    canvas, *small = resize(image, (cols * size, rows * size), *[(size, size)] * thumbnails)
    # [rows * size, cols * size, 3] -> [rows, cols, size, size, 3]
    by_cell = canvas.reshape(rows, size, cols, size, 3).swapaxes(1, 2)
    tiles[: rows * cols] = by_cell.reshape(rows * cols, size, size, 3)
    if small:
        tiles[-1] = small[0]
    return tiles
