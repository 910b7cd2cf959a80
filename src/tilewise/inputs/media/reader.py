"""The media that requests name, opened: fetched, decoded and counted within the limits of one request."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tilewise.errors import InvalidField, InvalidRequest, UnknownOption
from tilewise.ignored import Ignored, asks_nothing
from tilewise.inputs.media.arrays import IMAGE_EMBEDS, EmbeddingForm
from tilewise.inputs.media.cache import DecodedMedia, KeptMedia, MediaByUuid
from tilewise.inputs.media.fetch import DataUrl, Kind, MediaAccess, MediaFiles, decode_base64
from tilewise.inputs.media.hosts import short
from tilewise.inputs.media.images import Colour, Opening, UnopenedFile, further_frames, on_background, open_image
from tilewise.inputs.media.limits import ALL_FRAMES, MediaBudget, MediaLimits
from tilewise.inputs.media.tiling import EncodedPicture, LimitedPicture, Picture, UnopenedPicture, lax_number
from tilewise.inputs.media.video import FrameChoice, read_video
from tilewise.timing import Stopwatch
from tilewise.types import Detail

if TYPE_CHECKING:
    from tilewise.inputs.media.opener import MediaOpener

_KNOWN = {"image": ("rgba_background_color",), "video": ("num_frames", "fps")}
_WITHOUT_EFFECT: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ("image", "image_mode"): (("RGB",), "pictures are brought to RGB in any case"),
    ("video", "frame_recovery"): ((True, False), "a frame that cannot be decoded is left out, and the next one taken"),
    ("video", "video_backend"): (("opencv", "pyav", "torchcodec"), "videos are decoded by FFmpeg, through PyAV"),
}
"""vLLM's options that change nothing here, each with the values of which that is true."""
LOCAL = ""
"""The scope of a program's own requests."""
LEFT_OUT = frozenset({"further_frames", "damaged_frames"})
"""Names that `MediaReader.ignored` may hold."""


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
        return cls(_colour(found), _frame_count(found, limits), _rate(found))

    def frames(self, default: FrameChoice) -> FrameChoice:
        """Return how frames of this request's videos are chosen."""
        asked: dict[str, Any] = {"num_frames": self.num_frames, "fps": self.fps}
        changes = {name: value for name, value in asked.items() if value is not None}
        return replace(default, **changes) if changes else default


def _has_no_effect(kind: str, name: str, value: Any) -> bool:
    """True for an option that changes nothing here. Raises InvalidRequest for a value that would change something."""
    if (kind, name) not in _WITHOUT_EFFECT:
        return False
    values = _WITHOUT_EFFECT[kind, name][0]
    if not asks_nothing(value, values):
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


def _frame_count(found: Mapping[str, Any], limits: MediaLimits) -> int | None:
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

    One reader serves all requests; `timed` gives each its own. `limits` are pictures and videos a prompt
    (`limit_mm_per_prompt`).
    """

    access: MediaAccess = field(default_factory=MediaAccess)
    opening: Opening = Opening()
    limits: dict[str, int] = field(default_factory=dict)
    frames: FrameChoice = field(default_factory=FrameChoice)
    handles: MediaByUuid = field(default_factory=lambda: MediaByUuid(0))
    """Media that were sent with a `uuid`."""
    detail_tiles: Mapping[Detail, int] | None = None
    """Most tiles of a picture whose part asks for this `detail`; None = it has no effect, as in vLLM."""
    embeddings: EmbeddingForm | None = None
    """Form of pictures that come encoded; None = they are not taken."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    """Times of reading, and counts of what was read."""
    budget: MediaBudget = field(default_factory=MediaBudget)
    scope: str | None = None
    """Owner of the media that a `uuid` names: a key or a salt. None = nobody, so nothing is kept or found."""
    listed: FrameChoice = FrameChoice(ALL_FRAMES)
    """Frames of a video that came as a list of them: all that were listed, unless the request itself says."""
    ignored: Ignored = field(default_factory=Ignored)
    """Names of what was left out of the media, from LEFT_OUT."""
    opener: MediaOpener | None = field(default=None, repr=False)
    """The opener of files, in processes of their own; None = they are opened here."""

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
            opening=replace(self.opening, background=options.background),
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
        image: Image.Image | UnopenedPicture
        if (data := self._data_url(part)) is not None:
            image = self._unopened(data.body.encode(), part, is_base64=True)
        elif isinstance(files := self._files(part), EncodedPicture):
            return files
        elif isinstance(files, DecodedMedia):
            image = files.images[0]
        elif self.opener is not None:
            image = self._unopened(files.files[0], part, files=files)
        else:
            image = self.open_image(files.files[0], _name(part))
            self._remember(part, files)
        most = (self.detail_tiles or {}).get(part.detail or "auto")
        return image if most is None and not part.options else LimitedPicture(image, most, part.options)

    def _data_url(self, part: MediaPart) -> DataUrl | None:
        """Return a data URL that is to be decoded where it is opened; None for anything else.

        One with a `uuid` is decoded here, since its file is kept.
        """
        if self.opener is None or part.url is None or part.uuid is not None or part.url[:5].lower() != "data:":
            return None
        data = DataUrl.of(part.url.strip())
        return data if data.is_base64 and data.body.isascii() else None

    def _unopened(
        self, content: bytes, part: MediaPart, is_base64: bool = False, files: MediaFiles | None = None
    ) -> UnopenedPicture:
        def opened(told: Mapping[str, Any]) -> None:
            self._count_opened(told, is_base64)
            self.watch.count(pictures=1)
            if told["further_frames"]:
                self._name_further_frames()
            if files is not None:
                self._remember(part, files)

        file = UnopenedFile(content, is_base64, _name(part), part.where, self.opening, self.budget)
        return UnopenedPicture(file, opened)

    def _count_opened(self, told: Mapping[str, Any], is_base64: bool) -> None:
        if is_base64:
            self.watch.count(downloads=1, download_bytes=told["bytes"])
        self.watch.took(decode=told["seconds"])
        self.budget.take_bytes(told["bytes"])
        self.budget.take_decoded(told["decoded"])

    def video(self, part: MediaPart) -> list[Image.Image]:
        files = self._files(part)
        assert not isinstance(files, EncodedPicture), "kept as a picture"
        if isinstance(files, DecodedMedia):
            return list(files.images)
        if files.is_list:
            frames = self._read_list(files)
        elif self.opener is not None:
            frames = self._opened_video(self.opener, files.files[0], part)
        else:
            frames = self.read_video(files.files[0], _name(part))
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
            self._name_further_frames()
        return image

    def _name_further_frames(self) -> None:
        self.ignored.add("further_frames", "a picture is its first frame or page; send a video for more of them")

    def open_image(self, data: bytes | Path, name: str = "") -> Image.Image:
        with self.watch.decoding():
            image = self._open(data, name)
        self.watch.count(pictures=1)
        return image

    def _open(self, data: bytes | Path, name: str = "") -> Image.Image:
        return on_background(self.given(open_image(data, self.opening.limits, self.budget, name)), self.opening)

    def _opened_video(self, opener: MediaOpener, data: bytes, part: MediaPart) -> list[Image.Image]:
        def opened(told: Mapping[str, Any]) -> None:
            self._count_opened(told, is_base64=False)
            for name, why in told["ignored"].items():
                self.ignored.add(name, why)

        # Without its place, which whoever reads parts adds to errors.
        file = UnopenedFile(data, False, _name(part), "", self.opening, self.budget)
        frames = opener.frames(file, self.frames, opened)
        self.watch.count(videos=1, frames=len(frames))
        return frames

    def read_video(self, data: bytes | Path, name: str = "") -> list[Image.Image]:
        with self.watch.decoding():
            frames = read_video(data, self.frames, self.opening, self.budget, name, self.ignored)
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
