"""Videos in, chosen frames out. Decoding is PyAV's; the choice of frames is OpenGVLab's.

Frames that are walked, pixels of each and seconds of it all are bounded, whatever the file claims to be.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.ignored import Ignored
from tilewise.inputs.media.file_kind import boxes, ends_early, kind_of
from tilewise.inputs.media.images import DAMAGE, Opening, check_size, turned_frame
from tilewise.inputs.media.limits import ALL_FRAMES, MAX_FRAMES, Deadline, MediaBudget, MediaLimits

# Playlists (concat, hls, dash, sdp) are formats too, which open other files and hosts: none of them here.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf"
# What cameras, phones and the web have written for decades. FFmpeg knows hundreds more, each of them one more decoder
# that a file can attack.
_CODECS = (
    "h264,hevc,libdav1d,av1,libvpx,libvpx-vp9,vp8,vp9,mpeg4,mpeg1video,mpeg2video,mjpeg,h263,msmpeg4,msmpeg4v1,"
    "msmpeg4v2,wmv1,wmv2,wmv3,vc1,flv,theora,prores,dvvideo,gif,png,rawvideo"
)
_CONTAINERS_READ = "Videos that are read: MP4, QuickTime, Matroska, WebM, AVI, MPEG, ASF, FLV, Ogg, GIF."
_ALLOWED = {"format_whitelist": _FORMATS, "codec_whitelist": _CODECS}


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """A choice of frames: `num_frames` spread evenly, or `fps` a second of film with `num_frames` as the cap.

    `num_frames` -1 is all frames, or no cap; what the server allows is the limit still.
    """

    num_frames: int = 32
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.num_frames != ALL_FRAMES and not 1 <= self.num_frames <= MAX_FRAMES:
            raise InvalidRequest(f"num_frames={self.num_frames} must be from 1 to {MAX_FRAMES}, or -1 for all frames.")
        if self.fps is not None and not self.fps > 0:
            raise InvalidRequest(f"fps={self.fps} must be above 0.")

    def indices(self, total: int, seconds: float | None = None) -> list[int]:
        """Return the indices of the chosen frames of a video with `total` frames; never more than there are.

        Source: `get_index` of the InternVL model cards: the middle of each of n equal segments.
        """
        wanted = total if self.num_frames == ALL_FRAMES else self.num_frames
        if self.fps is not None and seconds:
            wanted = min(wanted, max(1, round(seconds * self.fps)))
        if wanted >= total:  # segments shorter than a frame would name some twice and others never
            return list(range(total))
        segment = (total - 1) / wanted
        return [int(segment / 2 + round(segment * i)) for i in range(wanted)]


def read_video(
    data: bytes | str | Path,
    choice: FrameChoice = FrameChoice(),
    opening: Opening = Opening(),
    budget: MediaBudget | None = None,
    name: str = "",
    ignored: Ignored | None = None,
    threads: int = 0,
) -> list[Image.Image]:
    """Decode the chosen frames of a video as RGB pictures.

    The container's frame count is not believed: packets are counted. A file that is cut short or damaged gives the
    frames that can be decoded, and `ignored` is told of the others. So many `threads` decode, 0 = one a CPU. Raises
    InvalidMedia when there is no frame at all, or more of anything than is allowed.
    """
    name = name or ("the video" if isinstance(data, bytes) else f"{data}")
    budget = budget or MediaBudget()
    deadline = Deadline(budget, "decode_seconds", f"Decoding {name}", "send a shorter or a smaller video")
    film = _VideoFile(data, name, opening, budget, deadline, threads)
    try:
        total, seconds, whole = film.measure()
        chosen = _choose(choice, total, seconds, film) if total else []
        frames = film.frames(chosen) if chosen else []
    except FileNotFoundError:
        raise InvalidMedia(f"{name}: no such file.") from None
    except (av.FFmpegError, *DAMAGE) as error:
        if isinstance(error, InvalidMedia):
            raise
        raise InvalidMedia(f"{name} {_no_video(_content(data))}") from None
    if not frames:
        raise InvalidMedia(f"{name} has no frame that can be decoded; send the whole file.")
    if ignored is not None and (len(frames) < len(chosen) or not whole):
        ignored.add("damaged_frames", "a video is damaged or cut short, and the frames that can be decoded were taken")
    return frames


def _choose(choice: FrameChoice, total: int, seconds: float | None, film: _VideoFile) -> list[int]:
    indices, most = choice.indices(total, seconds), film.budget.limits.chosen_frames
    if len(indices) > most:
        raise InvalidMedia(
            f"{film.name} has {total} frames, {len(indices)} of them are asked for and the limit is {most} "
            f"({MediaLimits.variable('chosen_frames')}): ask for num_frames={most}, or send a part of it."
        )
    return indices


def _content(data: bytes | str | Path) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return Path(data).read_bytes()
    except OSError:
        return b""


def _no_video(content: bytes) -> str:
    """Return why a file that FFmpeg does not open is not read."""
    kind = kind_of(content)
    if kind is not None and kind.family == "video":
        return f"is {kind.name} that is damaged or cut off{_missing_index(content)}: send the whole file."
    if kind is not None and kind.family == "picture":
        return f"is not a video that can be read (it is {kind.name}): send it as an image_url."
    what = f" (it is {kind.name})" if kind else ""
    return f"is not a video that can be read{what}. {_CONTAINERS_READ}"


def _missing_index(content: bytes) -> str:
    """Return words for a missing index; MP4 and QuickTime keep what is where in a box that recorders write last."""
    if content[4:8] != b"ftyp":
        return ""
    for kind, end in itertools.islice(boxes(io.BytesIO(content)), 1000):
        if kind == b"moov":
            return ", its index (the moov box) with it" if end > len(content) else ""
    return " before its index (the moov box), without which no frame is found"


@dataclass(frozen=True, slots=True)
class _VideoFile:
    """A file that is opened twice: to count what is in it, and to decode what was chosen."""

    data: bytes | str | Path
    name: str
    opening: Opening
    budget: MediaBudget
    deadline: Deadline
    threads: int

    def _file(self) -> BinaryIO:
        """Open the file; a path is opened here, so that FFmpeg reads none as a protocol."""
        return io.BytesIO(self.data) if isinstance(self.data, bytes) else Path(self.data).open("rb")

    def _whole(self) -> bool:
        with self._file() as file:
            return not ends_early(file)

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """Yield a container of a plain video format and its first video stream."""
        with (
            self._file() as file,
            # Names in a file may be in any encoding; nobody reads them.
            av.open(file, options=_ALLOWED, metadata_errors="ignore") as container,
        ):
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise InvalidMedia(f"{self.name} is not a video that can be read (it has sound alone).")
            self._check_codec(stream.codec_context)
            yield container, stream

    def _check_codec(self, codec: Any) -> None:
        name = "unknown" if codec is None else codec.name
        if codec is None and not self._whole():  # what it is was in the part that is missing
            raise InvalidMedia(f"{self.name} {_no_video(_content(self.data))}")
        if name not in _CODECS.split(","):
            raise InvalidMedia(
                f"{self.name} has the codec {name}, which is not read here: send H.264, H.265, VP8, VP9, AV1 or MPEG-4."
            )
        if codec.width and codec.height:
            self._check_frame(codec.width, codec.height)
        codec.options = {"max_pixels": str(self.opening.limits.max_pixels)}  # for sizes that change on the way

    def _check_frame(self, width: int, height: int) -> None:
        check_size((width, height), self.opening.limits, f"A frame of {self.name}")

    def measure(self) -> tuple[int, float | None, bool]:
        """Return frames (counted, not believed) and seconds of the first video stream, as far as they can be read.

        The third value is whether that is all that the file announces.
        """
        limit, packets = self.budget.limits.video_frames, 0
        whole = self._whole()
        with self._open() as (container, stream):
            for packet in _packets(container, stream):
                self.deadline.left()
                packets += packet.size > 0
                whole = whole and not packet.is_corrupt
                if packets > limit:
                    raise InvalidMedia(
                        f"{self.name} has more than {limit} frames, the limit: send a part of it, or raise "
                        f"{MediaLimits.variable('video_frames')}."
                    )
            rate = stream.average_rate
            announced = 0 if container.format.name == "avi" else stream.frames  # AVI counts empty frames as well
            return packets, packets / float(rate) if rate else None, whole and packets >= announced

    def frames(self, indices: list[int]) -> list[Image.Image]:
        """Return frames at ascending `indices`; fewer if the file ends or is damaged, at least one if there is any."""
        wanted, frames, last = set(indices), [], None
        with self._open() as (container, stream):
            stream.codec_context.thread_count = self.threads
            stream.thread_type = "NONE" if self.threads == 1 else "AUTO"
            for index, frame in enumerate(self._decoded(container, stream)):
                last = frame
                if index in wanted:
                    frames.append(self._picture(frame))
                if index >= indices[-1]:
                    break
            if not frames and last is not None:
                frames.append(self._picture(last))
        return frames

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield all frames that can be decoded: one that is damaged is left out, and the next is tried."""
        for packet in _packets(container, stream):
            self.deadline.left()
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            yield from decoded

    def _picture(self, frame: Any) -> Image.Image:
        self._check_frame(frame.width, frame.height)
        self.budget.take_decoded(4 * frame.width * frame.height)
        image: Image.Image = frame.to_image(threads=1)  # more of them would stay until somebody looks for garbage
        return turned_frame(image, frame) if self.opening.exif_orientation else image


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield packets, up to where the file ends or is damaged."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        return
