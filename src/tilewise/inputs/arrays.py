"""Pictures and frames as arrays: of numpy, torch or whatever else can become a numpy array.

Channels are last or first, gray, RGB or RGBA in this order, never BGR. Whole numbers are 0 to 255; fractions are 0 to 1
if none is above 1, else 0 to 255.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_NO_EMBEDDINGS = "embeddings of pictures need enable_mm_embeds=True (--enable-mm-embeds)"
_SHAPES = "[H, W], [H, W, C] or [C, H, W] with 1 (gray), 3 (RGB) or 4 (RGBA) channels"


def is_array(value: Any) -> bool:
    """True for arrays of numpy, and for tensors, told by what they can do, since torch need not be installed."""
    return isinstance(value, np.ndarray) or (hasattr(value, "__array__") and not isinstance(value, Image.Image))


def dimensions(value: Any) -> int:
    """Return the number of dimensions; 0 for what is no array."""
    return len(value.shape) if is_array(value) else 0


def check_no_embeddings(values: list[Any]) -> None:
    """Raise InvalidRequest for a list of tensors of fractions `[tokens, hidden]`, the form of embeddings in vLLM."""
    for value in values:
        if dimensions(value) == 2 and hasattr(value, "is_floating_point") and value.is_floating_point():
            raise InvalidRequest(
                f"A list has a tensor of fractions of shape {list(value.shape)}: {_NO_EMBEDDINGS}; a gray picture is "
                "[1, H, W], or has whole numbers."
            )


def to_picture(value: Any) -> Image.Image:
    """Return a PIL picture. Raises InvalidRequest for another shape or type, InvalidMedia for values out of range."""
    array = _to_numpy(value)
    channels = _channel_axis(array.shape, first=not isinstance(value, np.ndarray))
    pixels = _to_bytes(array)
    if channels is not None:
        pixels = np.moveaxis(pixels, channels, -1)
        pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_numpy(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):  # a tensor: gradients and devices stay behind, and numpy has no bfloat16
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)


def _channel_axis(shape: tuple[int, ...], first: bool) -> int | None:
    """Return the axis of the channels, None if there is none; where both ends could be it, `first` decides."""
    if len(shape) == 2 and 0 not in shape:
        return None
    if len(shape) == 3 and 0 not in shape:
        for axis in (0, 2) if first else (2, 0):
            if shape[axis] in _MODES:
                return axis
    hint = f": {_NO_EMBEDDINGS}" if first and len(shape) == 3 else ""
    raise InvalidRequest(f"A picture as an array must be {_SHAPES}, got {list(shape)}{hint}.")


def _to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise InvalidRequest(f"A picture as an array must have numbers, got {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise InvalidMedia(
            f"A picture as an array must have values from 0 to 255, or from 0 to 1 as fractions, got {low:g} to "
            f"{high:g}: leave normalisation to the engine; {_NO_EMBEDDINGS}."
        )
    if array.dtype.kind == "f":
        array = np.rint(array * 255 if high <= 1 else array)
    return array.astype(np.uint8)
