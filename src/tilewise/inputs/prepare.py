"""Template + tokenizer + tiles -> Request: the last step before the engine."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from tilewise.config import EngineConfig
from tilewise.errors import InvalidField, InvalidMedia, InvalidRequest
from tilewise.inputs.context import ContextWindow, Side
from tilewise.inputs.grammar import Grammars
from tilewise.inputs.media.cache import CacheCounts, CutPicture, MediaCache
from tilewise.inputs.media.images import DAMAGE, ImageLimits, check_size, reason
from tilewise.inputs.media.tiling import EncodedPicture, LimitedPicture, Picture, UnopenedPicture, tiles_of
from tilewise.inputs.options import bad_word_ids, check_ids, check_sampling, structured, tilings
from tilewise.inputs.pieces import (
    CONTEXT_MARKER,
    IMAGE_MARKER,
    ImageSlot,
    Message,
    Piece,
    Text,
    join_text,
    place_media,
    to_string,
)
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.templates import THINK, THOUGHT, Ending, Template
from tilewise.inputs.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, Tokenizer
from tilewise.resize import Resize, by_pillow
from tilewise.sampling_params import SamplingParams
from tilewise.timing import Clock, InputTiming
from tilewise.types import ImageInput, Request

if TYPE_CHECKING:
    from tilewise.inputs.media.opener import MediaOpener
    from tilewise.inputs.media.tiling import Tiling


Video = Sequence[Image.Image]
"""Frames, already chosen; each becomes one tile."""


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """The options by which a conversation becomes a prompt."""

    thinking: bool | None = None
    """True if the model is asked to think first, before an answer of a given form too; None = as the template does."""
    tools: Sequence[str] = ()
    """Definitions of functions, each a JSON text."""
    ending: Ending = "open"
    processor: Mapping[str, Any] = field(default_factory=dict)
    """`mm_processor_kwargs`."""
    keep_last: int | None = None
    """`truncate_prompt_tokens`: the tokens to which the prompt is cut, -1 = what fits; None = as the sampling says."""
    cut: Side = "left"
    """`truncation_side`: where a prompt that is cut loses tokens."""


@dataclass(frozen=True)
class Preparer:
    """A maker of requests for one model, from messages or raw prompts with media."""

    spec: InputSpec
    tokenizer: Tokenizer
    max_model_len: int
    config: EngineConfig = field(default_factory=EngineConfig)
    """Options of the engine: they say how media are read, and what answers may ask for."""
    cache: MediaCache = field(default_factory=lambda: MediaCache(0), repr=False)
    """The pictures already cut."""
    resize: Resize = field(default=by_pillow, repr=False)
    opener: MediaOpener | None = field(default=None, repr=False)
    """The opener of pictures that come as files; None = they come open."""
    clock: Clock = field(default=time.monotonic, repr=False)
    _numbers: itertools.count[int] = field(default_factory=itertools.count, repr=False)

    @property
    def media_counts(self) -> CacheCounts:
        """The look-ups of pictures that may have been cut before."""
        return self.cache.counts if self.opener is None else self.cache.counts + self.opener.counts

    @property
    def media_use(self) -> tuple[CacheCounts, float]:
        """Return `media_counts`, and the share of the shared memory for tiles that is in use."""
        return self.media_counts, 0.0 if self.opener is None else self.opener.store.usage

    def forget_media(self) -> None:
        """Forget all pictures that were cut; the counts go on."""
        self.cache.clear()
        if self.opener is not None:
            self.opener.forget()
            gc.collect()  # requests that failed may hold tiles in circles

    def chat(
        self,
        messages: Sequence[Message],
        pictures: Sequence[Picture | Video],
        sampling: SamplingParams,
        options: TemplateOptions = TemplateOptions(),
    ) -> Request:
        """Make a request of a conversation, with its media in the order in which the messages bring them."""
        sampling = sampling.clone()
        started = self.clock()
        template, processor = self._template(options.processor)
        formed = bool(sampling.structured_outputs)
        thinks = template.thinks_if(options.thinking, formed)
        if formed:  # its first token is `<think>`, where it thinks
            template = dataclasses.replace(template, think_opening="")
        pieces = template.render(messages, thinks, options.tools, options.ending)
        self._context.check_text(pieces, sampling, options.keep_last)
        images = self._tile_all(pictures, processor)
        ids = self._context.cut(self.chat_ids(pieces), sampling, options.keep_last, options.cut)
        request = self._request(ids, images, sampling, to_string(pieces), _lengths(pictures))
        if thinks and request.grammar and options.ending == "open":
            request = request.with_(thinking=(self.tokenizer.special_id(THINK), self.tokenizer.special_id(THOUGHT)))
        return self._timed(started, request)

    def _template(self, processor: Mapping[str, Any]) -> tuple[Template, dict[str, Any]]:
        """Return the template with the order of parts that is asked for, and the options that are left."""
        left = dict(processor)
        interleave = left.pop("interleave_mm_strings", None)
        if not isinstance(interleave, bool | None):
            raise InvalidField(
                "interleave_mm_strings", f"interleave_mm_strings must be true or false, got {interleave!r:.80}."
            )
        interleave = self.config.interleave_mm_strings if interleave is None else interleave
        return self.spec.template.ordered(interleave), left

    def _timed(self, started: float, request: Request) -> Request:
        return request.with_(inputs=InputTiming(preprocess=self.clock() - started))

    def chat_ids(self, pieces: Sequence[Piece]) -> list[int | ImageSlot]:
        """Return ids of a template's pieces behind the start token, if there is one; pictures are slots still."""
        return self.spec.started(self.tokenizer.encode_pieces(pieces))

    def prompt(
        self,
        prompt: str | Sequence[int],
        pictures: Sequence[Picture | Video],
        sampling: SamplingParams,
        *,
        processor: dict[str, Any] | None = None,
        start: bool = True,
        keep_last: int | None = None,
        cut: Side = "left",
    ) -> Request:
        """Make a request of a ready-made prompt (text in which special tokens are meant, or token ids).

        `<image>` and `<video>` markers place the media, and so does `<IMG_CONTEXT>`, which -hf prompts use; without
        markers media go first. Without `start` a text gets no start token. The rest is as in `TemplateOptions`.
        """
        started = self.clock()
        sampling = sampling.clone()
        if isinstance(prompt, str):
            self._context.check_text([Text(prompt)], sampling, keep_last)
        images = self._tile_all(pictures, processor)
        if isinstance(prompt, str):
            text_ids = self._raw_ids(prompt, pictures)
            ids, text = self.spec.started(text_ids) if start and text_ids else text_ids, prompt
        else:
            ids, text = self._slots_for_ids(prompt, images), None
        ids = self._context.cut(ids, sampling, keep_last, cut)
        return self._timed(started, self._request(ids, images, sampling, text, _lengths(pictures)))

    def encoding(self, pictures: Sequence[Picture], processor: dict[str, Any] | None, most_tiles: int) -> Request:
        """Make a request of pictures without a prompt, for an engine that encodes alone.

        The rows of each picture begin where those before it end. Raises InvalidRequest for more than `most_tiles`,
        before any is cut: no context limits them here.
        """
        started = self.clock()
        usual, _ = tilings(self.spec.tiling.override(processor), len(pictures), self.config)
        # Of files that are opened by others, sizes are known once they are cut.
        check_tile_count(sum(tiles_of(picture, usual) or 0 for picture in pictures), most_tiles)
        found = self._tile_all(pictures, processor)
        check_tile_count(sum(len(cut.tiles) for cut in found), most_tiles)
        images, place = [], 0
        for cut in found:
            images.append(ImageInput(cut.tiles, cut.grid, cut.size, place))
            place += len(cut.tiles) * self.spec.tokens_per_tile
        request = Request(str(next(self._numbers)), (), SamplingParams(), tuple(images))
        return self._timed(started, request)

    def _raw_ids(self, prompt: str, media: Sequence[Picture | Video]) -> list[int | ImageSlot]:
        videos = _lengths(media)
        if len(media) == len(videos) and IMAGE_CONTEXT in prompt:
            raise InvalidRequest(
                f"The prompt has {prompt.count(IMAGE_CONTEXT)} {IMAGE_CONTEXT} and no pictures came with it: "
                "send them, or leave it out; in messages it is text."
            )
        text = CONTEXT_MARKER.sub(IMAGE_MARKER, prompt)
        pieces = join_text(place_media(text, len(media) - len(videos), videos, 0, "The prompt"))
        return self.tokenizer.encode_pieces(pieces, raw=True)

    def _slots_for_ids(self, prompt: Sequence[int], images: Sequence[CutPicture]) -> list[int | ImageSlot]:
        """Return a prompt of ids with slots for its pictures; without any place for them, they go first.

        Each picture stands there as one `<IMG_CONTEXT>`, or as many as its rows, which is how results have them; framed
        by `<img>` and `</img>` or not.
        """
        context, start, end = map(self.tokenizer.special_id, (IMAGE_CONTEXT, IMAGE_START, IMAGE_END))
        check_ids("prompt_token_ids", prompt, self.tokenizer)
        ids: list[int | ImageSlot] = []
        number = 0
        for token, run in itertools.groupby(map(int, prompt)):
            if token == context:
                framed = bool(ids) and ids[-1] == start
                if framed:
                    ids.pop()
                places = self._places(len(list(run)), number, images, framed)
                ids += map(ImageSlot, range(number, number + places))
                number += places
            else:
                # The slice begins at 0 or 1: an `</img>` right behind a slot belongs to it and is dropped.
                ids += list(run)[token == end and bool(ids) and isinstance(ids[-1], ImageSlot) :]
        return [*map(ImageSlot, range(len(images))), *ids] if images and not number else ids

    def _places(self, length: int, number: int, images: Sequence[CutPicture], framed: bool) -> int:
        """Return how many pictures `length` image tokens in a row stand for, beginning with picture `number`.

        Raises InvalidRequest if they are neither the rows of a picture nor one for each.
        """
        if number >= len(images):
            return 1 if framed else length
        rows = len(images[number].tiles) * self.spec.tokens_per_tile
        if length == rows:
            return 1
        if length == 1 or (not framed and length <= len(images) - number):
            return length
        raise InvalidRequest(
            f"prompt_token_ids: {length} {IMAGE_CONTEXT} in a row stand for picture {number + 1}, which fills {rows}: "
            f"write one {IMAGE_CONTEXT} for each picture, or cut it as when the ids were made (mm_processor_kwargs)."
        )

    def _tile_all(self, media: Sequence[Picture | Video], processor: dict[str, Any] | None) -> list[CutPicture]:
        tiling = self.spec.tiling.override(processor)
        tiling, frame = tilings(tiling, len(media) - len(_lengths(media)), self.config)
        pairs: list[tuple[Image.Image | UnopenedPicture | EncodedPicture, Tiling]] = []
        for item in media:
            if isinstance(item, LimitedPicture):
                pairs.append((item.image, item.tiling(tiling)))
            elif isinstance(item, Picture):
                pairs.append((item, tiling))
            else:
                pairs += [(image, frame) for image in item]
        unopened = [(item, its) for item, its in pairs if isinstance(item, UnopenedPicture)]
        opened = iter(self.opener.cut(unopened) if self.opener is not None and unopened else ())
        return [next(opened) if isinstance(item, UnopenedPicture) else self._tile(item, its) for item, its in pairs]

    def _tile(self, image: Image.Image | EncodedPicture, tiling: Tiling) -> CutPicture:
        if isinstance(image, EncodedPicture):
            return CutPicture(image.tiles, (len(image.tiles), 1), (0, 0))
        check_size(image.size, ImageLimits.of(self.config))
        try:
            image.load()
            found = self.cache.cut(image, tiling, self.config.exif_orientation, self.resize)
        except DAMAGE as error:  # Pillow reads the pixels only now
            if "closed image" in str(error):
                raise InvalidMedia("A picture was closed before it was read: call its load() before close().") from None
            raise InvalidMedia(f"A picture is damaged or cut short ({reason(error)}).") from None
        return found if self.opener is None else self.opener.share(found)

    def _request(
        self,
        ids: list[int | ImageSlot],
        images: list[CutPicture],
        sampling: SamplingParams,
        prompt: str | None,
        videos: Sequence[int],
    ) -> Request:
        slots = sum(isinstance(item, ImageSlot) for item in ids)
        if slots != len(images):
            raise InvalidRequest(
                f"The prompt has places for {slots} pictures and {len(images)} came with it: "
                "write one <image> for each, or none to put them first."
            )
        prompt_ids, spans = self._expand(ids, images)
        self._context.check(prompt_ids, sum(len(image.tiles) for image in images), videos, sampling.max_tokens)
        check_sampling(sampling, self.tokenizer, self.config.max_logprobs)
        sampling = structured(sampling, self.config)
        structure = sampling.structured_outputs
        return Request(
            id=str(next(self._numbers)),
            prompt_ids=tuple(prompt_ids),
            sampling=sampling,
            images=tuple(spans),
            prompt=prompt,
            stop_ids=self.spec.end_ids,
            bad_words=bad_word_ids(sampling.bad_words or (), self.tokenizer),
            grammar=self._grammars.compile(structure) if structure else None,
        )

    @cached_property
    def _context(self) -> ContextWindow:
        return ContextWindow(self.tokenizer, self.max_model_len, self.spec.tokens_per_tile)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.spec.end_ids)

    def _expand(self, ids: list[int | ImageSlot], images: list[CutPicture]) -> tuple[list[int], list[ImageInput]]:
        """Replace each slot by `<img>`, one `<IMG_CONTEXT>` a row of its tiles, `</img>`; return the places as well."""
        start, end = self.tokenizer.special_id(IMAGE_START), self.tokenizer.special_id(IMAGE_END)
        context = self.tokenizer.special_id(IMAGE_CONTEXT)
        prompt: list[int] = []
        spans: list[ImageInput] = []
        for item in ids:
            if not isinstance(item, ImageSlot):
                prompt.append(item)
                continue
            tiled = images[item.index]
            spans.append(ImageInput(tiled.tiles, tiled.grid, tiled.size, start=len(prompt) + 1))
            prompt += [start, *[context] * (len(tiled.tiles) * self.spec.tokens_per_tile), end]
        return prompt, spans


def check_tile_count(tiles: int, most: int) -> None:
    if tiles > most:
        raise InvalidRequest(
            f"The pictures have {tiles} tiles, the limit of a request is {most}: send several requests, or a smaller "
            "max_dynamic_patch."
        )


def _lengths(media: Sequence[Picture | Video]) -> list[int]:
    """Return the number of frames of each video."""
    return [len(item) for item in media if not isinstance(item, Picture)]
