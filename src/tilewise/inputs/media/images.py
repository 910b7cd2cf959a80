"""Pictures in: decoded, turned upright, flattened to RGB.

The way up is a note that a camera leaves (Exif), or the display matrix of a video. Sources: Exif 2.32, tag Orientation;
ISO/IEC 14496-12, matrix of the track header.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from tilewise.errors import InvalidConfig, InvalidMedia
from tilewise.host import require_extra
from tilewise.inputs.media.file_kind import is_heic, kind_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewise.config import EngineConfig
    from tilewise.inputs.media.limits import MediaBudget


Colour = tuple[int, int, int]
# Formats whose frames are moments or pages. (MPO, a phone's format, keeps a depth map as second frame.)
_SEVERAL_FRAMES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"}
# Everything else that Pillow knows is rare or dangerous (PostScript starts an interpreter).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")
_FORMATS_READ = (
    "Formats that are read: JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC (with pillow-heif), JPEG 2000, PPM, ICO, TGA."
)
_WITH_SIGNATURE = ("JPEG", "PNG", "WebP", "GIF", "TIFF", "JPEG 2000")
"""Formats among them whose files are told by how they begin (`kind_of`)."""
_START_OF_SCAN = b"\xff\xda"
_TEXT_MIB = PngImagePlugin.MAX_TEXT_CHUNK // 2**20
_MAX_SCANS = 100  # cameras and web sites write about ten
_OBJECT = re.compile(r"'?<[^<>]*>'?|\b0x[0-9a-fA-F]{5,}\b")
_PIXELS = re.compile(r"(\d+) pixels")  # the first number in Pillow's refusal
_ERRNO = re.compile(r"\[Errno -?\d+\] *")
_OPENING = threading.Lock()  # filters of warnings belong to the process; opening reads a header
_TAG = 0x0112
_UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow counts against the clock
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# By the signs of a matrix's first two rows, of which two entries are 0 in a turn by quarters.
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
# Where Pillow keeps the note, and copies it from into what it turns.
_NOTES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
# What Pillow's decoders raise on damaged files.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError),
    *(OverflowError, RuntimeError, struct.error, zlib.error),
)


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


@dataclass(frozen=True, slots=True)
class Opening:
    """The way in which pictures and frames of videos are opened."""

    limits: ImageLimits = ImageLimits()
    background: Colour | None = None
    """Colour behind pictures with transparency; None = white."""
    exif_orientation: bool = True
    """Pictures are turned as their camera says, videos as their display matrix says."""

    @classmethod
    def of(cls, config: EngineConfig) -> Opening:
        return cls(ImageLimits.of(config), exif_orientation=config.exif_orientation)


@dataclass(frozen=True, slots=True)
class UnopenedFile:
    """A picture's or video's file as it came, to be opened elsewhere."""

    content: bytes
    is_base64: bool
    name: str
    """The name that errors have for it; "" = the picture, or the video."""
    where: str
    """Place of the part in the request, for errors."""
    opening: Opening
    budget: MediaBudget
    """The bytes and seconds that its request may still take."""


def on_background(image: Image.Image, opening: Opening) -> Image.Image:
    """Lay a picture with transparency over the background that is asked for, if one is."""
    if opening.background and image.has_transparency_data:
        # What is flattened has no note of its camera any more.
        return flatten(upright(image) if opening.exif_orientation else image, opening.background)
    return image


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
    except IsADirectoryError:
        raise InvalidMedia(f"{name} is a folder: name the files in it.") from None
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
        if "MAX_TEXT_" in str(error):  # Pillow's limit
            raise InvalidMedia(
                f"{name} has texts or a colour profile beyond Pillow's limit of {_TEXT_MIB} MiB: save it without."
            ) from None
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
            "scale it down, or raise max_image_pixels (--max-image-pixels)."
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
            "into pieces, or raise max_image_aspect_ratio (--max-image-aspect-ratio)."
        )


def _no_picture(content: bytes) -> str:
    kind = kind_of(content)
    if kind is None:
        return f"is not a picture that can be read. {_FORMATS_READ}"
    if kind.family == "video":
        return f"is not a picture that can be read (it is {kind.name}): send it as a video_url."
    if any(kind.name == f"a {name} picture" for name in _WITH_SIGNATURE):
        return f"is damaged: it begins as {kind.name}, and what follows is none; send the whole file again."
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


def orientation(image: Image.Image) -> int:
    """Return the camera's note, 1 to 8. A note that is damaged or unknown counts as 1, upright, as in browsers."""
    try:
        value = image.getexif().get(_TAG)
    except DAMAGE:
        return _UPRIGHT
    return value if isinstance(value, int) and value in _TURNS else _UPRIGHT


def upright(image: Image.Image) -> Image.Image:
    """Return the picture turned as its camera says, without the note, so that nobody turns it again."""
    method = _TURNS.get(orientation(image))
    if method is None:
        return image
    turned = image.transpose(method)
    for name in _NOTES:
        turned.info.pop(name, None)
    return turned


def turned_frame(image: Image.Image, frame: Any) -> Image.Image:
    """Return the picture of a frame of PyAV, turned as the video's display matrix says, to the nearest quarter."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    method = None if matrix is None else _TURNS.get(matrix_orientation(bytes(matrix)))
    return image if method is None else image.transpose(method)


def matrix_orientation(matrix: bytes) -> int:
    """Return 1 to 8 as in Exif, for nine 32-bit numbers in the machine's order, as FFmpeg hands them over.

    The matrix takes a pixel (x, y) to (a * x + c * y, b * x + d * y), y pointing down.
    """
    a, b, _, c, d = struct.unpack("=9i", matrix)[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        b = c = 0
    else:
        a = d = 0
    signs = ((a > 0) - (a < 0), (b > 0) - (b < 0), (c > 0) - (c < 0), (d > 0) - (d < 0))
    return _ORIENTATIONS.get(signs, _UPRIGHT)
