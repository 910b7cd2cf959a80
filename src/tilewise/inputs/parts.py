"""Content parts of the OpenAI form: every spelling of each, checked before anything is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from PIL import Image

from tilewise.errors import InvalidMedia, InvalidRequest, did_you_mean
from tilewise.inputs.arrays import is_array
from tilewise.inputs.embeddings import KEY
from tilewise.inputs.images import lax_number
from tilewise.inputs.media import Kind
from tilewise.inputs.media_handles import check_uuid
from tilewise.inputs.media_reader import EncodedPart, MediaPart
from tilewise.inputs.templates import MediaPlace
from tilewise.types import Detail

_KINDS: dict[str, Kind] = {"image_url": "image", "video_url": "video"}
TILING = ("max_dynamic_patch", "min_dynamic_patch")
_PARTS = ("text", "image_url", "video_url", "image_pil", "video_frames", "image_embeds")


@dataclass
class Parts:
    """What one message holds, sorted; pictures and videos are open already, or are to be read."""

    role: Any
    texts: list[str] = field(default_factory=list)
    images: list[MediaPart | EncodedPart | Image.Image] = field(default_factory=list)
    videos: list[MediaPart | list[Image.Image]] = field(default_factory=list)
    calls: tuple[str, ...] = ()
    """Of tools, by the assistant."""
    sent: list[str | MediaPlace] = field(default_factory=list)
    """Texts and media as they came."""

    @property
    def order(self) -> tuple[str | MediaPlace, ...]:
        """What `Message.parts` has to know: nothing, where any order gives the same prompt."""
        kinds = ["text" if isinstance(part, str) else part.kind for part in self.sent]
        usual = ["image"] * len(self.images) + ["video"] * len(self.videos) + ["text"] * min(1, len(self.texts))
        return () if kinds == usual else tuple(self.sent)

    def add(self, part: Any, where: str) -> None:
        """Raises InvalidRequest, naming `where`."""
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, Mapping):
            raise InvalidRequest(f"{where} must be a text or an object, got {type(part).__name__}.")
        kind = part.get("type") or next((name for name in _PARTS if name in part), None)
        if kind not in _PARTS:
            hint = did_you_mean(str(kind), _PARTS)
            raise InvalidRequest(f"{where}: type must be one of {', '.join(_PARTS)}, got {kind!r:.80}.{hint}")
        value = part.get(kind)
        if kind == "text":
            self.texts.append(_text(value, where))
            self.sent.append(self.texts[-1])
            return
        if kind == "image_pil":
            self.images.append(_picture(value, where))
        elif kind == "video_frames":
            self.videos.append(_frames(value, where))
        elif kind == "image_url":
            self.images.append(_media(part, kind, where))
        elif kind == "image_embeds":
            self.images.append(_encoded(part, where))
        else:
            self.videos.append(_media(part, kind, where))
        self.sent.append(MediaPlace("image" if kind.startswith("image") else "video"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}: text needs a string, got {type(value).__name__}.")
    return value


def _picture(value: Any, where: str) -> Image.Image:
    if not isinstance(value, Image.Image):
        raise InvalidRequest(f"{where}: image_pil needs a PIL image, got {type(value).__name__}.")
    return value


def _frames(value: Any, where: str) -> list[Image.Image]:
    if not isinstance(value, list) or not all(isinstance(frame, Image.Image) for frame in value):
        raise InvalidRequest(f"{where}: video_frames needs a list of PIL images, got {value!r:.80}.")
    if not value:
        raise InvalidMedia(f"{where}: video_frames has no frames: send at least one.")
    return value


def _encoded(part: Mapping[str, Any], where: str) -> EncodedPart:
    value = part.get(KEY)
    value = value.get(KEY) if isinstance(value, Mapping) else value
    uuid = check_uuid(part.get("uuid"), where)
    if not (isinstance(value, str) or is_array(value) or (value is None and uuid is not None)):
        raise InvalidRequest(
            f"{where}: image_embeds needs a file of a tensor in base64, got {type(value).__name__}; or a uuid of a "
            "picture that was sent before."
        )
    return EncodedPart(value, uuid, where)


def _media(part: Mapping[str, Any], kind: str, where: str) -> MediaPart:
    value = part.get(kind)
    options = value if isinstance(value, Mapping) else {}
    url = options.get("url") if isinstance(value, Mapping) else value
    uuid = check_uuid(part.get("uuid", options.get("uuid")), where)
    if not (isinstance(url, str) or (url is None and uuid is not None)):
        raise InvalidRequest(f"{where}: {kind} needs a string, got {type(url).__name__}.")
    detail = _detail(options.get("detail", part.get("detail")), where)
    return MediaPart(url, _KINDS[kind], uuid, detail, _tiling(part, options, kind, where), where)


def _tiling(part: Mapping[str, Any], inner: Mapping[str, Any], kind: str, where: str) -> tuple[tuple[str, int], ...]:
    """How one picture is cut: beside its URL, as LMDeploy and SGLang have it, or in the part."""
    given = {name: inner.get(name, part.get(name)) for name in TILING}
    options = {name: lax_number(value) for name, value in given.items() if value is not None}
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidRequest(f"{where}: {name} must be a whole number from 1 on, got {value!r:.80}.")
        if kind != "image_url" and value != 1:
            raise InvalidRequest(f"{where}: {name} must be 1, as frames of videos are one tile each, got {value}.")
    return tuple(options.items()) if kind == "image_url" else ()


def _detail(value: Any, where: str) -> Detail | None:
    if value is not None and value not in get_args(Detail):
        raise InvalidRequest(f"{where}: detail must be one of {', '.join(get_args(Detail))}, got {value!r:.80}.")
    return value  # type: ignore[no-any-return]
