"""Pictures as arrays of numpy, torch or whatever else can become a numpy array; and pictures that come encoded.

Channels of a picture are last or first, gray, RGB or RGBA in this order, never BGR. Whole numbers are 0 to 255;
fractions are 0 to 1 if none is above 1, else 0 to 255.

An encoded picture is rows of its tiles, as another engine's or `tilewise encode-server`'s tower made them: a tensor
`[tiles * tokens, hidden]`, `[tiles, tokens, hidden]` or `[1, tiles * tokens, hidden]`, as vLLM takes them. Everything
about it is checked here, so that whatever comes reaches nobody else's answer: rows of another width would be written
beside their page, and one that is no number would spread through the caches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tilewise.errors import InvalidConfig, InvalidMedia, InvalidRequest
from tilewise.inputs.media.limits import MediaBudget
from tilewise.inputs.media.tensor_file import Shape, no_fractions, read_tensor
from tilewise.inputs.media.tiling import MAX_TILES, EncodedPicture, content_digest
from tilewise.types import TileRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewise.config import EngineConfig
    from tilewise.weights.folder import CheckpointFolder


_NO_EMBEDDINGS = "embeddings of pictures need enable_mm_embeds=True (--enable-mm-embeds)"
_SHAPES = "[H, W], [H, W, C] or [C, H, W] with 1 (gray), 3 (RGB) or 4 (RGBA) channels"
IMAGE_EMBEDS = "image_embeds"
_LARGEST = 65504.0
"""Largest number of float16, in which an engine may compute."""
_MOST_TILES = MAX_TILES + 1  # and a thumbnail
_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
_SAME_MODEL = "encode pictures with the tower and projector of the model that is served"


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
            if shape[axis] in _CHANNELS:
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


@dataclass(frozen=True, slots=True)
class EmbeddingForm:
    """The shape in which a model takes the rows of tiles."""

    tokens: int
    """Rows of one tile."""
    hidden: int
    """Numbers of one row."""

    @classmethod
    def of(cls, config: EngineConfig, folder: CheckpointFolder, tokens: int) -> EmbeddingForm | None:
        """Return the form; None unless the engine takes embeddings.

        Raises InvalidConfig for a Flash model with its router.
        """
        if not config.enable_mm_embeds:
            return None
        if config.flash_router and folder.config.get("flash_mode"):
            raise InvalidConfig(
                "Rows in place of pictures (enable_mm_embeds) are not possible with a Flash checkpoint's router, which "
                "reads the features of tiles: add --no-flash-router (flash_router=False), or send pictures."
            )
        return cls(tokens, folder.text.whole("hidden_size"))

    def read(self, data: bytes, budget: MediaBudget) -> EncodedPicture:
        """Read the picture in a file of one tensor (`read_tensor`). Raises InvalidMedia."""
        return self._picture(read_tensor(data, lambda shape: self._check(shape, budget)))

    def picture(self, value: Any, budget: MediaBudget) -> EncodedPicture:
        """Return the picture that an array or a tensor is. Raises InvalidMedia."""
        array = _fractions(value)
        self._check(array.shape, budget)
        return self._picture(array)

    def is_meant(self, value: Any) -> bool:
        """True for embeddings, False for pictures.

        Embeddings are a tensor of fractions whose rows are as wide as the model's, or that has nothing that could be
        channels. Arrays of numpy are pictures.
        """
        if isinstance(value, np.ndarray) or dimensions(value) not in (2, 3) or not _floats(value):
            return False
        first, last = value.shape[0], value.shape[-1]
        return last == self.hidden or dimensions(value) == 2 or not {first, last}.intersection(_CHANNELS)

    def _check(self, shape: Shape, budget: MediaBudget) -> None:
        """Raise InvalidMedia, before an array is made, for a wrong shape and for more than its request has left."""
        forms = f"[tiles * {self.tokens}, {self.hidden}] or [tiles, {self.tokens}, {self.hidden}]"
        if len(shape) not in (2, 3):
            raise InvalidMedia(f"image_embeds has the shape {list(shape)}, it must be {forms}.")
        if shape[-1] != self.hidden:
            raise InvalidMedia(
                f"image_embeds has rows of {shape[-1]} numbers, this model's have {self.hidden}: {_SAME_MODEL}."
            )
        rows = math.prod(shape[:-1])
        if rows == 0 or rows % self.tokens:
            raise InvalidMedia(
                f"image_embeds has {rows} rows {list(shape)}, each tile of this model has {self.tokens}: it must be "
                f"{forms}; {_SAME_MODEL}, and send all rows of each tile."
            )
        if rows // self.tokens > _MOST_TILES:
            raise InvalidMedia(
                f"image_embeds has {rows // self.tokens} tiles, the limit of a picture is {_MOST_TILES}: send several."
            )
        budget.take_decoded(rows * self.hidden * 4)

    def _picture(self, array: NDArray[Any]) -> EncodedPicture:
        rows = np.ascontiguousarray(array).reshape(-1, self.hidden)
        self._check_numbers(rows)
        if rows.dtype.itemsize == 8:
            rows = rows.astype(np.float32)
        rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)
        tiles = rows.reshape(-1, self.tokens, self.hidden)
        return EncodedPicture(tuple(TileRows(rows_digest(tile), tile) for tile in tiles))

    def _check_numbers(self, rows: NDArray[Any]) -> None:
        for start in range(0, len(rows), self.tokens):
            part = _as_float32(rows[start : start + self.tokens])
            fits = np.abs(part) <= _LARGEST  # which NaN is not
            if not fits.all():
                row, column = np.argwhere(~fits)[0]
                value = part[row, column]
                what = "is no number" if np.isnan(value) else "is infinite" if np.isinf(value) else "is too large"
                raise InvalidMedia(
                    f"image_embeds: {value:g} in row {start + row}, column {column} {what}; the limit is {_LARGEST:g} "
                    f"either way: {_SAME_MODEL}."
                )


def rows_digest(rows: NDArray[Any]) -> bytes:
    """Return 16 bytes of SHA-256 over dtype, shape and rows; none equals the digest of a tile's pixels."""
    return content_digest("rows of a tile", (rows.dtype.name, rows.shape), rows.tobytes(), 16)


def listed(value: Any) -> list[Any]:
    """Return the pictures of `multi_modal_data` that are embeddings, each as an array.

    A tensor `[pictures, rows, hidden]` holds several, as in vLLM; of a list each entry is one.
    """
    if isinstance(value, Mapping):
        return listed(value[IMAGE_EMBEDS])
    if is_array(value):
        return list(value) if dimensions(value) == 3 else [value]
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and value:
        return list(value)
    raise InvalidRequest(f"{IMAGE_EMBEDS} must be a tensor or a list of tensors, got {type(value).__name__}.")


def _as_float32(rows: NDArray[Any]) -> NDArray[Any]:
    if rows.dtype.itemsize == 2 and rows.dtype.kind == "u":  # bfloat16, the upper half of the bits of a float32
        return (rows.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return rows.astype(np.float32)


def _floats(value: Any) -> bool:
    if hasattr(value, "is_floating_point"):
        return bool(value.is_floating_point())
    return np.asarray(value).dtype.kind == "f"


def _fractions(value: Any) -> NDArray[Any]:
    if not is_array(value):
        raise InvalidMedia(
            f"{IMAGE_EMBEDS} must be a tensor of fractions, or a file of one in base64, got {type(value).__name__}."
        )
    if not _floats(value):
        raise no_fractions(str(value.dtype))
    if hasattr(value, "detach"):  # a tensor; numpy has no bfloat16, all numbers of which float32 has
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    array = np.asarray(value)
    if array.dtype.itemsize > 8:
        raise no_fractions(str(array.dtype))
    return array
