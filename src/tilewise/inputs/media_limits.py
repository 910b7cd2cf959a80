"""How much media a request may bring, and how long they may take: every limit with the variable that sets it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilewise.errors import InvalidConfig

MAX_FRAMES = 512
ALL_FRAMES = -1
"""As `num_frames`: every frame of a video, up to what is allowed."""
_MIB = 2**20


def _limit(default: float, variable: str, unit: int = 1, lowest: float = 1, highest: float = math.inf) -> Any:
    """`variable` counts in `unit`s; its names are vLLM's where vLLM has the limit."""
    metadata = {"variable": variable, "unit": unit, "lowest": lowest, "highest": highest}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Limits of one file, and of all media of one request. What a picture may be is in `ImageLimits`."""

    file_bytes: int = _limit(256 * _MIB, "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", _MIB)
    request_bytes: int = _limit(256 * _MIB, "VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB", _MIB)
    request_decoded_bytes: int = _limit(715_827_880, "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES")
    """Of pixels as Pillow keeps them: four bytes each unless they are grey."""
    image_seconds: float = _limit(5.0, "VLLM_IMAGE_FETCH_TIMEOUT", lowest=0.001)
    """Of a fetch from the first look-up to the last byte, redirects and retries included."""
    video_seconds: float = _limit(30.0, "VLLM_VIDEO_FETCH_TIMEOUT", lowest=0.001)
    retries: int = _limit(3, "VLLM_MEDIA_FETCH_MAX_RETRIES", lowest=0)
    video_frames: int = _limit(36_000, "VLLM_MAX_VIDEO_DECODE_FRAMES")
    """That a file may have, however few of them are chosen."""
    chosen_frames: int = _limit(MAX_FRAMES, "TILEWISE_MAX_CHOSEN_FRAMES", highest=MAX_FRAMES)
    """Of one video, whatever the request asks for."""
    decode_seconds: float = _limit(60.0, "TILEWISE_VIDEO_DECODE_TIMEOUT", lowest=0.001)
    """Of one video."""
    handle_bytes: int = _limit(256 * _MIB, "TILEWISE_MAX_MEDIA_HANDLES_MB", _MIB, lowest=0)
    """Files of all requests that are kept under their `uuid`; 0 = none."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> MediaLimits:
        """The defaults, changed by the variables that are set. Raises InvalidConfig for one that is no such number."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = environment.get(field.metadata["variable"])
            if text is not None:
                changes[field.name] = _read(field, text)
        return cls(**changes)

    @classmethod
    def variable(cls, name: str) -> str:
        """What raises a limit."""
        return next(str(field.metadata["variable"]) for field in dataclasses.fields(cls) if field.name == name)


def _read(field: dataclasses.Field[Any], text: str) -> float:
    variable, lowest, highest = (field.metadata[key] for key in ("variable", "lowest", "highest"))
    whole = isinstance(field.default, int)
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not (lowest <= value <= highest and value < math.inf):  # NaN fails too
        what = "a whole number" if whole else "a number"
        most = "" if highest == math.inf else f" and at most {highest}"
        raise InvalidConfig(f"{variable} must be {what} of at least {lowest}{most}, found {text!r:.80}.")
    return value * field.metadata["unit"]  # type: ignore[no-any-return]
