"""The media that requests name, opened: fetched, decoded and counted within the limits of one request."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from tilewise.errors import InvalidField, InvalidRequest
from tilewise.ignored import Ignored
from tilewise.inputs.data_url import decode_base64
from tilewise.inputs.embeddings import IMAGE_EMBEDS, EmbeddingForm, EncodedPicture
from tilewise.inputs.images import Colour, ImageLimits, LimitedPicture, flatten, further_frames, open_image
from tilewise.inputs.media import Kind, MediaAccess, MediaFiles
from tilewise.inputs.media_cache import DecodedMedia, KeptMedia, MediaByUuid
from tilewise.inputs.media_io import MediaOptions
from tilewise.inputs.media_limits import ALL_FRAMES, MediaBudget
from tilewise.inputs.orientation import upright
from tilewise.inputs.video import FrameChoice, read_video
from tilewise.inputs.web.address import short
from tilewise.timing import Stopwatch
from tilewise.types import Detail

LOCAL = ""
"""The scope of a program's own requests."""
LEFT_OUT = frozenset({"further_frames", "damaged_frames"})
"""Names that `MediaReader.ignored` may hold."""
Picture = Image.Image | LimitedPicture | EncodedPicture
Media = Picture | list[Image.Image]
"""A picture, or the chosen frames of a video."""


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A picture or video as a message names it: by URL, by the `uuid` of one sent before, or by both."""

    url: str | None
    kind: Kind
    uuid: str | None = None
    detail: Detail | None = None
    options: tuple[tuple[str, int], ...] = ()
    """`max_dynamic_patch` and `min_dynamic_patch` of this picture alone."""
    where: str = ""
    """Place of the part in the request, for errors."""


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """A picture that comes encoded: a file of its rows in base64, or a program's tensor."""

    data: Any
    """Base64 or tensor; None = the picture that was sent before under this `uuid`."""
    uuid: str | None = None
    where: str = ""
    """Place of the part in the request, for errors."""


@dataclass(frozen=True)
class MediaReader:
    """A reader of the media that requests name.

    One reader serves all requests; `timed` gives each its own, with the last six fields. `limits` are pictures and
    videos a prompt (`limit_mm_per_prompt`).
    """

    access: MediaAccess = field(default_factory=MediaAccess)
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    limits: dict[str, int] = field(default_factory=dict)
    frames: FrameChoice = field(default_factory=FrameChoice)
    handles: MediaByUuid = field(default_factory=lambda: MediaByUuid(0))
    """Media that were sent with a `uuid`."""
    detail_tiles: Mapping[Detail, int] | None = None
    """Most tiles of a picture whose part asks for this `detail`; None = it has no effect, as in vLLM."""
    exif_orientation: bool = True
    """Pictures are turned as their camera says, videos as their display matrix says."""
    embeddings: EmbeddingForm | None = None
    """Form of pictures that come encoded; None = they are not taken."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    """Times of reading, and counts of what was read."""
    budget: MediaBudget = field(default_factory=MediaBudget)
    background: Colour | None = None
    """Colour behind pictures with transparency; None = white."""
    scope: str | None = None
    """Owner of the media that a `uuid` names: a key or a salt. None = nobody, so nothing is kept or found."""
    listed: FrameChoice = FrameChoice(ALL_FRAMES)
    """Frames of a video that came as a list of them: all that were listed, unless the request itself says."""
    ignored: Ignored = field(default_factory=Ignored)
    """Names of what was left out of the media, from LEFT_OUT."""

    def timed(
        self,
        options: MediaOptions = MediaOptions(),
        *,
        cancelled: threading.Event | None = None,
        scope: str | None = None,
        ignored: Ignored | None = None,
    ) -> MediaReader:
        """Return a reader for one request; `budget.cancel`, or `cancelled`, ends whatever it is reading."""
        return replace(
            self,
            frames=options.frames(self.frames),
            watch=Stopwatch(),
            budget=MediaBudget(self.access.limits, cancelled),
            background=options.background,
            scope=scope,
            listed=options.frames(self.listed) if options.num_frames is not None else self.listed,
            ignored=Ignored() if ignored is None else ignored,
        )

    def check_count(self, kind: str, count: int) -> None:
        limit = self.limits.get(kind)
        if limit is not None and count > limit:
            raise InvalidRequest(f"At most {limit} {kind}(s) may be provided in one prompt. {count} were given.")

    def takes_embeddings(self, where: str) -> EmbeddingForm:
        """Return the form of pictures that come encoded. Raises InvalidRequest where they are not taken."""
        if self.embeddings is None:
            raise InvalidField(
                where or IMAGE_EMBEDS,
                f"{where}: image_embeds are not taken without --enable-mm-embeds (enable_mm_embeds=True): start the "
                "engine with it, or send image_url.",
            )
        return self.embeddings

    def encoded_picture(self, part: EncodedPart) -> Picture:
        form = self.takes_embeddings(part.where)
        if part.data is None:
            return self.picture(MediaPart(None, "image", part.uuid, where=part.where))
        with self.watch.decoding():
            if isinstance(part.data, str):
                found = form.read(decode_base64(part.data, self.budget, IMAGE_EMBEDS), self.budget)
            else:
                found = form.picture(part.data, self.budget)
        self.watch.count(pictures=1)
        if part.uuid is not None:
            self.handles.keep(self.scope, "image", part.uuid, found)
        return found

    def picture(self, part: MediaPart) -> Picture:
        files = self._files(part)
        if isinstance(files, EncodedPicture):
            return files
        image = files.images[0] if isinstance(files, DecodedMedia) else self.open_image(files.files[0], _name(part))
        self._remember(part, files)
        most = (self.detail_tiles or {}).get(part.detail or "auto")
        return image if most is None and not part.options else LimitedPicture(image, most, part.options)

    def video(self, part: MediaPart) -> list[Image.Image]:
        files = self._files(part)
        assert not isinstance(files, EncodedPicture), "kept as a picture"
        if isinstance(files, DecodedMedia):
            return list(files.images)
        frames = self._read_list(files) if files.is_list else self.read_video(files.files[0], _name(part))
        self._remember(part, files)
        return frames

    def _files(self, part: MediaPart) -> KeptMedia:
        if part.url is None:
            return self.handles.find(self.scope, part.kind, part.uuid or "")
        with self.watch.downloading():
            files = self.access.fetch_files(part.url, part.kind, self.budget)
        self.watch.count(downloads=1, download_bytes=files.num_bytes)
        return files

    def _remember(self, part: MediaPart, files: KeptMedia) -> None:
        """Keep media that have a `uuid`, once they are known to be readable."""
        if part.uuid is not None and part.url is not None:
            self.handles.keep(self.scope, part.kind, part.uuid, files)

    def keep_decoded(self, kind: Kind, uuid: str, images: Sequence[Image.Image]) -> None:
        """Keep pictures under a name, for later requests; as copies, so that nobody changes them."""
        self.handles.keep(self.scope, kind, uuid, DecodedMedia(tuple(image.copy() for image in images)))

    def given(self, image: Image.Image) -> Image.Image:
        """Return an open picture, and name in `ignored` that further frames are left out.

        Of several frames it is the one that it stands at, the first unless a program has chosen another.
        """
        if further_frames(image):
            self.ignored.add("further_frames", "a picture is its first frame or page; send a video for more of them")
        return image

    def open_image(self, data: bytes | Path, name: str = "") -> Image.Image:
        with self.watch.decoding():
            image = self._open(data, name)
        self.watch.count(pictures=1)
        return image

    def _open(self, data: bytes | Path, name: str = "") -> Image.Image:
        image = self.given(open_image(data, self.image_limits, self.budget, name))
        if self.background and image.has_transparency_data:
            # What is flattened has no note of its camera any more.
            return flatten(upright(image) if self.exif_orientation else image, self.background)
        return image

    def read_video(self, data: bytes | Path, name: str = "") -> list[Image.Image]:
        with self.watch.decoding():
            frames = read_video(
                data, self.frames, self.image_limits, self.budget, name, self.exif_orientation, self.ignored
            )
        self.watch.count(videos=1, frames=len(frames))
        return frames

    def _read_list(self, files: MediaFiles) -> list[Image.Image]:
        chosen = self.listed.indices(len(files.files))
        with self.watch.decoding():
            frames = [self._open(files.files[index], f"frame {index + 1} of the video") for index in chosen]
        self.watch.count(videos=1, frames=len(frames))
        return frames


def _name(part: MediaPart) -> str:
    """Return what errors call a part; "" = the picture, the video."""
    return short(part.url) if part.url and part.url[:5].lower() != "data:" else ""
