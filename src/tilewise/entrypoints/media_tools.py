"""Small helpers about pictures and videos that vLLM's programs import from `multimodal.image` and `.utils`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tilewise.inputs.media.arrays import is_array, to_picture
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.images import flatten
from tilewise.inputs.media.reader import MediaOptions, MediaPart, MediaReader

_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def convert_image_mode(image: Image.Image, to_mode: str) -> Image.Image:
    """Return a picture in another mode; what is transparent becomes white where the mode has no transparency."""
    if image.mode == to_mode:
        return image
    if to_mode == "RGB" and image.has_transparency_data:
        return flatten(image, (255, 255, 255))
    return image.convert(to_mode)


def rescale_image_size(image: Image.Image, size_factor: float, transpose: int = -1) -> Image.Image:
    """Return a picture `size_factor` as wide and as high, then turned by one of PIL's transpositions, if any."""
    rescaled = image.resize((int(image.width * size_factor), int(image.height * size_factor)))
    return rescaled if transpose < 0 else rescaled.transpose(Image.Transpose(transpose))


def fetch_image(image_url: str, image_io_kwargs: dict[str, Any] | None = None) -> Image.Image:
    """Return the picture behind an http(s), data or file URL, in RGB; any local file that the user may read is taken.

    Limits are those of `LLM` without options: only public hosts are reached. Raises InvalidMedia.
    """
    reader = _reader("image", image_io_kwargs)
    found = reader.picture(MediaPart(image_url, "image"))
    assert isinstance(found, Image.Image)  # no part asks for a detail
    return convert_image_mode(found, "RGB")


def fetch_video(video_url: str, video_io_kwargs: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Return frames of the video behind a URL, as an array `[frames, height, width, 3]`, and how many there are."""
    import numpy as np

    frames = _reader("video", video_io_kwargs).video(MediaPart(video_url, "video"))
    return np.stack([np.asarray(frame) for frame in frames]), {"total_num_frames": len(frames)}


def encode_image_base64(image: Any, image_mode: str = "RGB", format: str = "PNG") -> str:
    """Return a picture (PIL or array) as a file in base64."""
    file = io.BytesIO()
    picture = to_picture(image) if is_array(image) else image
    convert_image_mode(picture, image_mode).save(file, format)
    return base64.b64encode(file.getvalue()).decode("ascii")


def encode_image_url(image: Any, image_mode: str = "RGB", format: str = "PNG") -> str:
    """Return a picture (PIL or array) as a data URL."""
    kind = _TYPES.get(format.upper(), f"image/{format.lower()}")
    return f"data:{kind};base64,{encode_image_base64(image, image_mode, format)}"


def encode_video_base64(frames: Sequence[Any], format: str = "JPEG") -> str:
    """Return frames as files in base64, divided by commas, as `data:video/jpeg;base64,` takes them."""
    return ",".join(encode_image_base64(frame, format=format) for frame in frames)


def encode_video_url(frames: Sequence[Any], format: str = "JPEG") -> str:
    """Return frames as a data URL."""
    return f"data:video/jpeg;base64,{encode_video_base64(frames, format)}"


def _reader(kind: str, options: dict[str, Any] | None) -> MediaReader:
    access = MediaAccess(allowed_local_media_path=Path("/"))
    return MediaReader(access).timed(MediaOptions.of({kind: options} if options else None))
