"""Videos in, chosen frames out. Decoding is PyAV's; the choice of frames is OpenGVLab's."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest

MAX_FRAMES = 512
# Playlists (concat, hls, dash, sdp) are formats too, which open other files and hosts: none of them here.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf"


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """How many frames: `num_frames` spread evenly, or `fps` a second of film with `num_frames` as the cap."""

    num_frames: int = 32
    fps: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_frames <= MAX_FRAMES:
            raise InvalidRequest(f"num_frames={self.num_frames} must be from 1 to {MAX_FRAMES}.")
        if self.fps is not None and not self.fps > 0:
            raise InvalidRequest(f"fps={self.fps} must be above 0.")

    def indices(self, total: int, seconds: float | None = None) -> list[int]:
        """Indices of the chosen frames of a video with `total` frames; never more than there are.

        Source: `get_index` of the InternVL model cards: the middle of each of n equal segments.
        """
        wanted = self.num_frames
        if self.fps is not None and seconds:
            wanted = min(wanted, max(1, round(seconds * self.fps)))
        if wanted >= total:  # segments shorter than a frame would name some twice and others never
            return list(range(total))
        segment = (total - 1) / wanted
        return [int(segment / 2 + round(segment * i)) for i in range(wanted)]


def read_video(data: bytes | str | Path, choice: FrameChoice = FrameChoice()) -> list[Image.Image]:
    """Decode the chosen frames of a video as RGB pictures.

    The container's frame count is not believed: packets are counted, and a file that is cut short gives the frames
    that can be decoded. Raises InvalidMedia when there is no frame at all.
    """
    name = "the video" if isinstance(data, bytes) else f"{data}"
    try:
        total, seconds = _measure(data)
        wanted = set(choice.indices(total, seconds)) if total else set()
        frames = _decode(data, wanted)
    except FileNotFoundError:
        raise InvalidMedia(f"{name}: no such file.") from None
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise InvalidMedia(f"{name} is not a video that can be read ({error}).") from None
    if not frames:
        raise InvalidMedia(f"{name} has no frame that can be decoded; send the whole file.")
    return frames


@contextmanager
def _open(data: bytes | str | Path) -> Iterator[Any]:
    """A container of a plain video format. Paths are opened here, so that none is read as a protocol."""
    with (
        io.BytesIO(data) if isinstance(data, bytes) else Path(data).open("rb") as stream,
        av.open(stream, options={"format_whitelist": _FORMATS}) as container,
    ):
        yield container


def _measure(data: bytes | str | Path) -> tuple[int, float | None]:
    """Frames (counted, not believed) and seconds of the first video stream."""
    with _open(data) as container:
        stream = container.streams.video[0]
        packets = sum(packet.size > 0 for packet in container.demux(stream))
        rate = stream.average_rate
        return packets, packets / float(rate) if rate else None


def _decode(data: bytes | str | Path, wanted: set[int]) -> list[Image.Image]:
    frames: list[Image.Image] = []
    with _open(data) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames.append(frame.to_image())
        except av.FFmpegError:
            if not frames:
                raise
    return frames
