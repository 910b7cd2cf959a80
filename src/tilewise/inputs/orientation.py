"""The way up of pictures and videos: the note that a camera leaves (Exif), and the display matrix.

Sources: Exif 2.32, tag Orientation; ISO/IEC 14496-12, matrix of the track header.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

from PIL import Image

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


def upright_frame(frame: Any) -> Image.Image:
    """Return a frame of PyAV as a picture, turned as the video's display matrix says, to the nearest quarter."""
    image: Image.Image = frame.to_image()
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
