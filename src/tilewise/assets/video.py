"""Sample videos that ship with the package, under the names that examples in the field use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from tilewise.errors import InvalidMedia, did_you_mean
from tilewise.inputs.media.limits import MAX_FRAMES
from tilewise.inputs.media.video import FrameChoice, read_video

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_FOLDER = Path(__file__).parent.parent / "demo" / "videos"


@dataclass(frozen=True, slots=True)
class VideoAsset:
    """A sample video by name, of which `num_frames` are taken, evenly from the first to the last; -1 = all.

    There is one, `baby_reading`: a drawn clip of a second, as no film is shipped.
    """

    name: str
    num_frames: int = -1

    def __post_init__(self) -> None:
        names = sorted(path.stem for path in _FOLDER.iterdir())
        if self.name not in names:
            hint = did_you_mean(self.name, names)
            raise InvalidMedia(f"There is no sample video {self.name!r}; there are {', '.join(names)}.{hint}")
        if self.num_frames != -1 and self.num_frames < 1:
            raise InvalidMedia(f"num_frames must be -1 (all) or a whole number >= 1, got {self.num_frames!r}.")

    @property
    def video_path(self) -> str:
        return str(_FOLDER / f"{self.name}.mp4")

    @property
    def pil_images(self) -> list[Image.Image]:
        frames = read_video(Path(self.video_path), FrameChoice(MAX_FRAMES))
        return [frames[index] for index in self._indices(len(frames))]

    @property
    def np_ndarrays(self) -> NDArray[np.uint8]:
        """Frames as uint8 `[frames, height, width, 3]`."""
        return np.stack([np.asarray(frame) for frame in self.pil_images])

    @property
    def metadata(self) -> dict[str, Any]:
        """Facts for processors that choose frames themselves; those of InternVL do not."""
        with av.open(self.video_path) as container:
            rate, total = float(container.streams.video[0].average_rate or 0), container.streams.video[0].frames
        indices = self._indices(total)
        return {
            "total_num_frames": len(indices),
            "fps": rate,
            "duration": total / rate if rate else 0.0,
            "video_backend": "pyav",
            "frames_indices": indices,
            "do_sample_frames": len(indices) == total,
        }

    def _indices(self, total: int) -> list[int]:
        wanted = total if self.num_frames == -1 else min(self.num_frames, total)
        return [int(place) for place in np.linspace(0, total - 1, wanted)]
