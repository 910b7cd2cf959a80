"""`media_io_kwargs` of a request: how its media are opened, within what the server allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.ignored import Ignored
from tilewise.inputs.images import Colour, lax_number
from tilewise.inputs.media_limits import ALL_FRAMES, MediaLimits
from tilewise.inputs.video import FrameChoice

_KNOWN = {"image": ("rgba_background_color",), "video": ("num_frames", "fps")}
_WITHOUT_EFFECT: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ("image", "image_mode"): (("RGB",), "pictures are brought to RGB in any case"),
    ("video", "frame_recovery"): ((True, False), "a frame that cannot be decoded is left out, and the next one taken"),
    ("video", "video_backend"): (("opencv", "pyav", "torchcodec"), "videos are decoded by FFmpeg, through PyAV"),
}
"""vLLM's options that change nothing here, each with the values of which that is true."""


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """The options by which a request's media are opened; None = as the server does."""

    background: Colour | None = None
    num_frames: int | None = None
    fps: float | None = None

    @classmethod
    def of(
        cls,
        kwargs: Mapping[str, Any] | None,
        limits: MediaLimits = MediaLimits(),
        ignored: Ignored | None = None,
    ) -> MediaOptions:
        """Read `{"image": {"rgba_background_color"}, "video": {"num_frames", "fps"}}`. Raises InvalidRequest.

        `ignored` is told of those of vLLM's options that change nothing here.
        """
        ignored = Ignored() if ignored is None else ignored
        if not isinstance(kwargs, Mapping | None):
            raise InvalidRequest(f"media_io_kwargs must be an object, got {type(kwargs).__name__}.")
        found: dict[str, Any] = {}
        for kind, options in (kwargs or {}).items():
            if kind not in _KNOWN:
                raise UnknownOption.named(str(kind), _KNOWN, "media_io_kwargs")
            if not isinstance(options, Mapping | None):
                raise InvalidRequest(f"media_io_kwargs: {kind} must be an object, got {type(options).__name__}.")
            for name, value in (options or {}).items():
                if _has_no_effect(kind, name, value):
                    ignored.add(f"media_io_kwargs.{kind}.{name}", _WITHOUT_EFFECT[kind, name][1])
                    continue
                if name not in _KNOWN[kind]:
                    raise UnknownOption.named(str(name), _KNOWN[kind], f"media_io_kwargs: {kind}")
                found[name] = value
        return cls(_colour(found), _count(found, limits), _rate(found))

    def frames(self, default: FrameChoice) -> FrameChoice:
        """Return how frames of this request's videos are chosen."""
        count = default.num_frames if self.num_frames is None else self.num_frames
        return FrameChoice(count, default.fps if self.fps is None else self.fps)


def _has_no_effect(kind: str, name: str, value: Any) -> bool:
    """True for an option that changes nothing here. Raises InvalidRequest for a value that would change something."""
    if (kind, name) not in _WITHOUT_EFFECT:
        return False
    values = _WITHOUT_EFFECT[kind, name][0]
    if value is not None and not any(type(value) is type(one) and value == one for one in values):
        possible = " or ".join(map(repr, values))
        raise InvalidRequest(f"media_io_kwargs: {kind}: {name}={value!r:.80} is not possible here, only {possible}.")
    return True


def _colour(found: Mapping[str, Any]) -> Colour | None:
    value = found.get("rgba_background_color")
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or [type(part) for part in value] != [int] * 3:
        raise InvalidRequest(f"rgba_background_color must be three whole numbers, got {value!r:.80}.")
    if not all(0 <= part <= 255 for part in value):
        raise InvalidRequest(f"rgba_background_color must be numbers from 0 to 255, got {value!r:.80}.")
    return value[0], value[1], value[2]


def _count(found: Mapping[str, Any], limits: MediaLimits) -> int | None:
    value = lax_number(found.get("num_frames"))
    if value is None:
        return None
    most = limits.chosen_frames
    if type(value) is not int or (value != ALL_FRAMES and not 1 <= value <= most):
        raise InvalidRequest(
            f"num_frames must be a whole number from 1 to {most}, got {value!r:.80}, or -1 for all frames; the limit "
            f"is the server's {MediaLimits.variable('chosen_frames')}."
        )
    return value


def _rate(found: Mapping[str, Any]) -> float | None:
    value = lax_number(found.get("fps"))
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise InvalidRequest(f"fps must be a number above 0, got {value!r:.80}.")
    return float(value)
