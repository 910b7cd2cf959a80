"""Bicubic resizing of RGB pictures: by Pillow, or by kernels that find the same bytes several times as fast.

Rules and rounding are those of Pillow's `Resample.c`: an output is a weighted mean of a window of inputs, which is
widened where a picture shrinks; first in one direction, then in the other, rounded to a byte each time.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

Size = tuple[int, int]
"""Width and height."""

_CHOOSES_ORDER = int(__version__.split(".")[0]) >= 13
_FRACTION, _LOW = 22, 11
"""Bits of a weight behind the point, and those of its lower part, as in `platforms/cpu/native/src/resize.cpp`."""
_GROUP, _PAIR = 4, 2
"""Inputs that kernels weigh at a time, beside and below each other."""
_LEAST = 6
"""Width of the narrowest row that kernels take, in pixels."""


class Resize(Protocol):
    """A function that resizes a picture to several sizes."""

    def __call__(self, image: Image.Image, *sizes: Size) -> list[NDArray[np.uint8]]:
        """Return an RGB picture in each of the sizes: uint8 [height, width, 3]."""
        ...


def by_pillow(image: Image.Image, *sizes: Size) -> list[NDArray[np.uint8]]:
    return [np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)) for size in sizes]


def resizer(library: str | None) -> Resize:
    """Return the kernels of a shared object, or Pillow without one, or if it is gone: it lies in a cache."""
    try:
        return by_pillow if library is None else ResizeKernels(library)
    except OSError:
        return by_pillow


def down_first(size: Size, to: Size) -> bool:
    """Return whether Pillow changes the height before the width: from 13 on, where the height shrinks much more."""
    less_wide, less_high = size[0] - to[0], size[1] - to[1]
    return _CHOOSES_ORDER and less_high > max(0, 2 * less_wide)


@dataclass(frozen=True, slots=True)
class Windows:
    """The inputs that each output is made of: the first of them, and the weights of all, in two parts."""

    first: NDArray[np.int32]
    weights: NDArray[np.int16]
    """int16 [outputs, taps / unit, upper and lower part, unit]."""
    taps: int


@lru_cache(maxsize=32)
def windows(size: int, outputs: int, unit: int) -> Windows | None:
    """Return the windows of `outputs` made of `size` inputs, in multiples of `unit`; None if inputs are too few."""
    scale = size / outputs
    widened = max(scale, 1.0)
    centre = (np.arange(outputs) + 0.5) * scale
    first = np.maximum((centre - 2 * widened + 0.5).astype(np.int64), 0)
    counts = np.minimum((centre + 2 * widened + 0.5).astype(np.int64), size) - first
    taps = -(-int(counts.max()) // unit) * unit
    if taps > size:
        return None
    # A window that would end behind the last input begins earlier, with weights of zero.
    begins = np.minimum(first, size - taps)
    tap = np.arange(taps) - (first - begins)[:, None]
    places = (tap + first[:, None] - centre[:, None] + 0.5) * (1 / widened)
    exact = np.where((tap >= 0) & (tap < counts[:, None]), _cubic(places), 0.0)
    exact /= np.cumsum(exact, axis=1)[:, -1:]  # one after the other, as Pillow adds them up
    whole = np.trunc(exact * (1 << _FRACTION) + np.copysign(0.5, exact)).astype(np.int64)
    # Kernels multiply 16-bit numbers, which a weight does not fit in: it goes to them as an upper and a lower part.
    parts = np.stack([whole >> _LOW, whole & ((1 << _LOW) - 1)], axis=1).astype(np.int16)
    weights = parts.reshape(outputs, 2, taps // unit, unit).swapaxes(1, 2)
    return Windows(begins.astype(np.int32), np.ascontiguousarray(weights), taps)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the kernel of Catmull and Rom: Keys, "Cubic convolution interpolation" (1981), with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


class ResizeKernels:
    """A `Resize` by functions of a shared object; pictures that are too narrow for them are left to Pillow.

    The functions take one thread, that of the caller, and let others run. They are bound here, since the platform's own
    `Native` comes with torch, which a server's process does without.
    """

    def __init__(self, library: str) -> None:
        shared = ctypes.CDLL(library)
        self._across, self._down = shared["resize_rgb_across"], shared["resize_down"]
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._across.argtypes = [pointer, number, number, pointer, number, pointer, pointer, number]
        self._down.argtypes = [pointer, number, pointer, number, pointer, pointer, number]
        self._across.restype = self._down.restype = None

    def __call__(self, image: Image.Image, *sizes: Size) -> list[NDArray[np.uint8]]:
        assert image.mode == "RGB"
        pixels = np.asarray(image)
        found = (self._resized(pixels, size) for size in sizes)
        return [by_pillow(image, size)[0] if out is None else out for size, out in zip(sizes, found, strict=True)]

    def _resized(self, pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8] | None:
        (high, wide, _), (width, height) = pixels.shape, size
        across, down = windows(wide, width, _GROUP), windows(high, height, _PAIR)
        if across is None or down is None or min(wide, width) < _LEAST:
            return None
        if down_first((wide, high), size):
            return self._to_width(self._to_height(pixels, height, down), width, across)
        return self._to_height(self._to_width(pixels, width, across), height, down)

    def _to_width(self, pixels: NDArray[np.uint8], width: int, by: Windows) -> NDArray[np.uint8]:
        height, now, _ = pixels.shape
        if now == width:
            return pixels
        out = np.empty((height, width, 3), np.uint8)
        self._across(_at(pixels), height, now, _at(out), width, _at(by.first), _at(by.weights), by.taps)
        return out

    def _to_height(self, pixels: NDArray[np.uint8], height: int, by: Windows) -> NDArray[np.uint8]:
        now, width, _ = pixels.shape
        if now == height:
            return pixels
        out = np.empty((height, width, 3), np.uint8)
        self._down(_at(pixels), 3 * width, _at(out), height, _at(by.first), _at(by.weights), by.taps)
        return out


def _at(array: NDArray[Any]) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data
