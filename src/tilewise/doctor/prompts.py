"""OwnPrompts: what a checkpoint's own prompts count, and what they would count if a server made them in another way."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from tilewise.config import EngineConfig
from tilewise.doctor.probes import PictureProbe, TextProbe
from tilewise.entrypoints.setup import media_reader
from tilewise.inputs.jinja import own_templates, render_all, token_texts
from tilewise.inputs.media.reader import LOCAL, MediaReader
from tilewise.inputs.media.tiling import Tiling, choose_grid, count_tiles
from tilewise.inputs.messages import parse_messages
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.inputs.options import tilings
from tilewise.inputs.pieces import Piece, Special, Text, join_text
from tilewise.inputs.request_builder import ChatPrompt
from tilewise.inputs.templates import TEMPLATES, Template
from tilewise.sampling_params import SamplingParams
from tilewise.types import Request

Cause = Literal[
    "template", "system", "start", "space", "special", "tiles", "thumbnail", "budget", "marks", "frames", "lost"
]
"""A way in which a server differs; each has remedies."""
_LONGEST = 10**6
"""A context for which no probe is too long."""
_MOST_TILES = (1, 4, 6, 8, 12, 24, 36, 40)


@dataclass(frozen=True)
class PromptVariant:
    """A way to make prompts that differs from the model's own, and what each probe would count by it."""

    causes: tuple[Cause, ...]
    text: str
    counts: tuple[int | None, ...]
    """Tokens of each probe; None = it says nothing of that one."""

    def matches(self, found: Sequence[int | None]) -> int:
        """Return how many of the counts that were `found` are those of this variant."""
        return sum(one == other for one, other in zip(self.counts, found, strict=True) if None not in (one, other))


class OwnPrompts:
    """The prompts of a checkpoint, made of its small files as its engine makes them."""

    def __init__(self, config: EngineConfig) -> None:
        """Read the files. Raises the errors of `ModelInputs.of`."""
        self.inputs = ModelInputs.of(config)
        self._prepare = self.inputs.plain_preparer(_LONGEST)
        self._reader: MediaReader = media_reader(config).timed(scope=LOCAL)

    @property
    def tile_size(self) -> int:
        return self.inputs.spec.tiling.tile_size

    @property
    def media_first(self) -> bool:
        """True if pictures stand before the text, wherever a message has them."""
        return self._prepare.spec.template.ordered(self._prepare.config.interleave_mm_strings).order == "media first"

    @property
    def varies(self) -> bool:
        """True if a router decides how many tokens a tile takes, which nobody knows before it has seen it."""
        return bool(self.inputs.checkpoint.folder.config.get("flash_mode")) and self.inputs.config.flash_router

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """Special tokens that the template writes, and that a user's text may hold without meaning them."""
        template = self._prepare.spec.template
        found = (*template.stop_tokens, *template.special.findall("".join(template.turns.values()) + template.opening))
        known = [token for token in dict.fromkeys(found) if self.inputs.tokenizer.find_id(token) is not None]
        return tuple(known[:3]) or ("</s>",)

    def request(self, wire: list[dict[str, Any]]) -> Request:
        prompt = ChatPrompt(messages=parse_messages(wire))
        return prompt.request(SamplingParams(max_tokens=1), self._prepare, self._reader)

    # ------------------------------------------------------------------ text

    def text_variants(self, probes: Sequence[TextProbe]) -> Iterator[PromptVariant]:
        """Yield other ways to make prompts of texts, the simplest first."""
        for strips, parses, start in itertools.product((False, True), (False, True), (0, 1, -1)):
            for name, causes, template in self._templates():
                changes: dict[Cause, str] = {"space": "white space at the ends is cut off"} if strips else {}
                changes |= {"special": "special tokens in users' texts become tokens"} if parses else {}
                changes |= {"start": _START[start]} if start else {}
                if name or changes:
                    counts = tuple(self._count(template, probe, strips, parses, start) for probe in probes)
                    text = ", and ".join(filter(None, (name, *changes.values())))
                    yield PromptVariant((*causes, *changes), text, counts)
        yield from self._jinja_variants(probes)

    def _templates(self) -> Iterator[tuple[str, tuple[Cause, ...], Template]]:
        own = self._prepare.spec.template
        yield "", (), own
        yield "there is no system text", ("system",), replace(own, system="")
        for name, template in TEMPLATES.items():
            if name != own.name:
                text = f"the template is that of {name}"
                yield text, ("template",), template
                yield f"{text}, without its system text", ("template",), replace(template, system="")

    def _count(self, template: Template, probe: TextProbe, strips: bool, parses: bool, start: int) -> int | None:
        messages = [replace(turn, text=turn.text.strip()) if strips else turn for turn in probe.messages]
        try:
            pieces = template.render(messages, template.thinks_if(None))
        except Exception:  # a template that has no such turn explains nothing
            return None
        if parses:
            pieces = join_text([part for piece in pieces for part in self._parsed(piece)])
        if any(isinstance(one, Special) and self.inputs.tokenizer.find_id(one.token) is None for one in pieces):
            return None
        return len(self._prepare.chat_ids(pieces)) + start

    def _parsed(self, piece: Piece) -> Iterator[Piece]:
        """Yield a text with the special tokens in it as what they are called."""
        if not isinstance(piece, Text):
            yield piece
            return
        pattern = "|".join(map(re.escape, self.marks))
        for part in re.split(f"({pattern})", piece.text):
            if part:
                yield Special(part) if part in self.marks else Text(part)

    def _jinja_variants(self, probes: Sequence[TextProbe]) -> Iterator[PromptVariant]:
        """Yield what the checkpoint's own Jinja files make of the probes; most servers take one of them."""
        folder = self.inputs.checkpoint.folder
        tokens = token_texts(folder)
        for source, files in own_templates(folder).items():
            results = render_all(source, [probe.wire for probe in probes], tokens)
            texts = [result.get("text") for result in results]
            ids = [
                None if text is None else self.inputs.spec.started(self.inputs.tokenizer.encode_raw(text))
                for text in texts
            ]
            counts = tuple(None if found is None else len(found) for found in ids)
            yield PromptVariant(("template",), f"the template is the checkpoint's {' and '.join(files)}", counts)

    # -------------------------------------------------------------- pictures

    def picture_variants(self, probes: Sequence[PictureProbe], own: Sequence[int]) -> Iterator[PromptVariant]:
        """Yield other ways to cut pictures, with what those of each probe would take; `own` is what they do take."""
        tiling = self.inputs.spec.tiling
        numbers = dict.fromkeys((tiling.max_tiles, *_MOST_TILES))
        for most, thumbnail, other_budget in itertools.product(
            numbers, (tiling.thumbnail, not tiling.thumbnail), (False, True)
        ):
            changes: dict[Cause, str] = {}
            if most != tiling.max_tiles:
                changes["tiles"] = f"a picture has at most {most} tile{'s' * (most > 1)} (max_dynamic_patch={most})"
            if thumbnail != tiling.thumbnail:
                changes["thumbnail"] = f"there is {'a' if thumbnail else 'no'} thumbnail behind the tiles of a picture"
            if other_budget:
                changes["budget"] = "the pictures of a request do not share tiles as they should"
            if changes:
                other = replace(tiling, max_tiles=most, min_tiles=min(tiling.min_tiles, most), thumbnail=thumbnail)
                pairs = zip(probes, own, strict=True)
                counts = tuple(self._cut(probe, count, other, other_budget) for probe, count in pairs)
                yield PromptVariant(tuple(changes), " and ".join(changes.values()), counts)
        for less in (-2, -1, 1, 2):
            text = (
                f"{abs(less)} token{'s' * (abs(less) > 1)} {'fewer' if less < 0 else 'more'} stand around each picture"
            )
            counts = tuple(count + less * len(probe.sizes) for probe, count in zip(probes, own, strict=True))
            yield PromptVariant(("marks",), text, counts)

    def _cut(self, probe: PictureProbe, count: int, tiling: Tiling, other_budget: bool) -> int:
        """Return the tokens of a probe's pictures if they were cut by `tiling`."""
        spec, config = self.inputs.spec, self._prepare.config
        own, _ = tilings(spec.tiling, len(probe.sizes), config)
        if other_budget:
            config = replace(config, tile_budget="share" if config.tile_budget == "each" else "each")
        other, _ = tilings(tiling, len(probe.sizes), config)
        more = sum(_tiles(*size, other) - _tiles(*size, own) for size in probe.sizes)
        return count + more * spec.tokens_per_tile


_START = {
    0: "",
    1: "there is one token more at the start, a second start token for example",
    -1: "the start token lacks",
}


def _tiles(width: int, height: int, tiling: Tiling) -> int:
    return count_tiles(choose_grid(width, height, tiling), tiling.thumbnail)


def best(variants: Iterator[PromptVariant], found: Sequence[int | None], own: Sequence[int]) -> PromptVariant | None:
    """Return the simplest variant that has all counts that were found, or else most of those that are not the own.

    None if none has the counts of more probes than the model's own prompts do.
    """
    own_matches = sum(one == other for one, other in zip(own, found, strict=True))
    top = max(variants, key=lambda one: (one.matches(found), -len(one.causes)), default=None)
    return top if top is not None and top.matches(found) > own_matches else None
