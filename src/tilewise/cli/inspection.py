"""An inspection as people read it in a terminal; without one, or with NO_COLOR, the same as plain text."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.text import Text

from tilewise.config import Quantization
from tilewise.environment import Environment
from tilewise.inputs.templates import TEMPLATES

if TYPE_CHECKING:
    from tilewise.inputs.inspection import Example, Inspection, PictureTiles, PromptPart, StopToken
    from tilewise.inputs.jinja import JinjaReport, TemplateComparison

_LABEL = 15  # width of the left column
# A checkpoint's texts must not steer the terminal: escape sequences, and marks that turn the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SPECIAL, _FRAME, _IMAGE, _LABELS, _WARNING = "bold magenta", "dim", "bold green", "dim", "yellow"
_TEXT = {"system": "cyan", "user": "bold", "assistant": "blue"}


def print_inspection(inspection: Inspection, ids: bool = False) -> None:
    """Print what is known of the model, then the worked example, then what the checkpoint's own template does."""
    page = _InspectionPage(Console(color_system=None if Environment.here().no_color else "auto", highlight=False))
    path = "" if inspection.path == inspection.model else f"  {_clean(inspection.path)}"
    page.line(Text(_clean(inspection.model), "bold"), Text(path, "dim"))
    _print_model(page, inspection)
    _print_tokens(page, inspection)
    _print_example(page, inspection)
    if ids:
        page.heading("Ids")
        page.block(Text(" ".join(_id_words(inspection))))
    _print_jinja(page, inspection)
    for warning in inspection.warnings:
        page.row("Warning", Text(_clean(warning), _WARNING))


def _print_model(page: _InspectionPage, inspection: Inspection) -> None:
    vision, template, tiling = inspection.vision, inspection.template, inspection.tiling
    page.row("Checkpoint", f"{inspection.format} format, {inspection.language}")
    if inspection.quantization is not None:
        known = inspection.quantization in (*get_args(Quantization), "intel/auto-round")
        rest = "the log of a start says which are kept how" if known else "which cannot be read"
        page.row("Weights", f"quantised by {inspection.quantization}; {rest}")
    page.row("Vision", f"{vision.name}, {vision.layers} layers of {vision.hidden_size}")
    page.row("Template", Text.assemble((template.name, "bold"), (f"  ({template.source})", "dim")))
    page.row("System text", Text(_clean(template.system_text), _TEXT["system"]))
    cut = f"{tiling.min_tiles} to {tiling.max_tiles} tiles" if tiling.dynamic else "one tile"
    thumbnail = ", thumbnail when there are several" if tiling.thumbnail and tiling.dynamic else ""
    page.row(
        "Tiling", f"{cut} of {tiling.tile_size}x{tiling.tile_size}{thumbnail}, {inspection.tokens_per_tile} tokens each"
    )
    if inspection.flash is not None:
        flash = inspection.flash
        page.row(
            "Flash router",
            f"{flash.compressed_tokens_per_tile} or {inspection.tokens_per_tile} tokens a tile; thresholds: "
            f"relative {_or_unset(flash.relative_threshold)}, absolute {_or_unset(flash.absolute_threshold)}",
        )
    page.row("Context", f"{inspection.context_length} tokens")
    page.row(
        "Vocabulary", f"{inspection.vocabulary.tokenizer_size} in the tokenizer, {inspection.vocabulary.rows} rows"
    )


def _print_tokens(page: _InspectionPage, inspection: Inspection) -> None:
    tokens = inspection.tokens
    image = [Text.assemble((token.text, _SPECIAL), f" {token.id}") for token in tokens.image]
    page.row("Image tokens", Text("   ").join(image))
    start = tokens.start
    page.row(
        "Starts with", "no start token" if start is None else Text.assemble((start.text, _SPECIAL), f" {start.id}")
    )
    width = max((len(stop.text or "?") for stop in tokens.stops), default=0)
    for number, stop in enumerate(tokens.stops):
        page.row("" if number else "Stops at", _stop(stop, width))


def _stop(stop: StopToken, width: int) -> Text:
    name = Text(_clean(stop.text or "?").ljust(width), _SPECIAL)
    return Text.assemble(name, f" {stop.id}", (f"   {', '.join(stop.sources)}", "dim"))


def _print_example(page: _InspectionPage, inspection: Inspection) -> None:
    example = inspection.example
    page.heading("Prompt")
    page.block(_prompt(example, TEMPLATES[inspection.template.name].special))
    page.heading("Tokens")
    for row, note in _token_rows(example, inspection.tokens_per_tile):
        page.line(row, Text(note, "dim"))
    page.line(Text("  total".ljust(27) + f"{example.total_tokens:>7}", "bold"), Text(_room(inspection), "dim"))
    if example.pictures:
        page.heading("Pictures")
    for text in _picture_lines(example.pictures):
        page.line(text)


def _prompt(example: Example, special: re.Pattern[str]) -> Text:
    """Return the prompt in colours. Text that only spells a special token does not look like one."""
    text = Text()
    for part in example.parts:
        if part.kind == "text":
            text.append(_clean(part.text), _TEXT[part.role])
        elif part.kind == "start":
            text.append(_clean(part.text), _SPECIAL)
        elif part.kind == "image marks":
            text.append(part.text, _IMAGE)
        else:
            text.append_text(_literal(part, special))
    return text


def _literal(part: PromptPart, special: re.Pattern[str]) -> Text:
    between_specials = re.split(f"({special.pattern})", part.text)
    return Text.assemble(*zip(between_specials, itertools.cycle((_FRAME, _SPECIAL)), strict=False))


def _token_rows(example: Example, tokens_per_tile: int) -> Iterator[tuple[str, str]]:
    """Yield a row and a note for each kind of part of each turn; the role stands in the first row of a turn."""
    totals: Counter[tuple[int, str]] = Counter()
    for part in example.parts:
        totals[part.turn, part.kind] += part.tokens
    roles = {part.turn: part.role for part in example.parts}
    shown: set[int] = set()
    for (turn, kind), tokens in totals.items():
        role = "" if turn in shown or kind == "start" else roles[turn]
        shown |= {turn} if role else set()
        note = f"  {tokens // tokens_per_tile} tiles x {tokens_per_tile}" if kind == "image rows" else ""
        yield f"  {role:<11}{'<img> </img>' if kind == 'image marks' else kind:<14}{tokens:>7}", note


def _room(inspection: Inspection) -> str:
    example, flash = inspection.example, inspection.flash
    left = inspection.context_length - example.total_tokens
    room = (
        f"  leaves {left} of {inspection.context_length} for the answer" if left > 0 else "  does not fit the context"
    )
    if flash is None or not example.pictures:
        return room
    tiles = sum(picture.tiles for picture in example.pictures)
    fewest = example.total_tokens - tiles * (inspection.tokens_per_tile - flash.compressed_tokens_per_tile)
    return f"{room}; at most: {fewest} if the router compresses every tile"


def _picture_lines(pictures: Iterable[PictureTiles]) -> Iterator[str]:
    """Yield a line for each picture; equal neighbours, such as the frames of a video, share one."""
    number = 1
    for picture, group in itertools.groupby(pictures):
        count = len(list(group))
        numbers = f"{number}" if count == 1 else f"{number}-{number + count - 1}"
        columns, rows = picture.grid
        grid = f"{columns} columns x {rows} rows" if columns * rows > 1 else "whole"
        thumbnail = " + thumbnail" if picture.thumbnail else ""
        each = " each" if count > 1 else ""
        tiles = f"{picture.tiles} tile{'s' if picture.tiles > 1 else ''}"
        yield (
            f"  {numbers:<6} {picture.size[0]}x{picture.size[1]}: {grid}{thumbnail} = {tiles}, "
            f"{picture.tokens} tokens{each}"
        )
        number += count


def _id_words(inspection: Inspection) -> Iterator[str]:
    names = {token.id: token.text for token in inspection.tokens.image}
    for item in inspection.example.ids:
        yield str(item) if isinstance(item, int) else f"{names[item.id]} x {item.count}"


def _print_jinja(page: _InspectionPage, inspection: Inspection) -> None:
    page.heading("The checkpoint's own Jinja template (prompts are not rendered by it)")
    if not inspection.jinja:
        page.line("  none")
    for report in inspection.jinja:
        files = ", ".join(report.files)
        if not report.differs:
            page.line(Text(f"  {files}: same prompts as above", "green"))
            continue
        page.line(Text(f"  {files} differs: engines that follow it ask the model something else", _WARNING))
        _print_differences(page, report)


def _print_differences(page: _InspectionPage, report: JinjaReport) -> None:
    for cause in report.causes:
        page.block(Text(_clean(cause), _WARNING), "    ")
    for comparison in report.comparisons:
        page.line(Text.assemble("    ", comparison.conversation.ljust(18), comparison.verdict))
        if comparison.verdict == "fails":
            page.block(Text(_one_line(comparison.error), "dim"), "      ")
    first = next((found for found in report.comparisons if found.verdict == "differs"), None)
    if first is not None:
        page.line(Text(f"    First difference, {first.conversation}:"))
        page.block(_excerpt(first.ours, first, "green"), "      ours    ")
        page.block(_excerpt(first.theirs, first, _WARNING), "      theirs  ")


def _excerpt(text: str, comparison: TemplateComparison, style: str) -> Text:
    same, other = text[: comparison.position], text[comparison.position :]
    return Text.assemble((_one_line(same), "dim"), (_one_line(other), style))


def _one_line(text: str) -> str:
    return _clean(text).replace("\n", "\\n")


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def _or_unset(value: float | None) -> str:
    return "not in config.json" if value is None else f"{value:g}"


@dataclass(frozen=True)
class _InspectionPage:
    """A page of lines on a console. In a terminal long ones are folded under themselves; elsewhere they stay whole."""

    console: Console

    def line(self, *parts: Text | str) -> None:
        self.console.print(Text.assemble(*parts), soft_wrap=True)

    def heading(self, title: str) -> None:
        self.line()
        self.line(Text(title, "bold underline"))

    def row(self, label: str, value: Text | str) -> None:
        self.block(value if isinstance(value, Text) else Text(_clean(value)), f"  {label}".ljust(_LABEL + 2))

    def block(self, text: Text, first: str = "  | ") -> None:
        """Print text behind `first`. Further lines stand behind as many spaces, or behind `first` if it is a bar."""
        margin = first if first.endswith("| ") else " " * len(first)
        lines = list(text.split("\n", allow_blank=True))
        if self.console.is_terminal:
            width = max(20, self.console.width - len(first))
            lines = [part for line in lines for part in line.wrap(self.console, width) or [line]]
        for number, line in enumerate(lines):
            self.line(Text(margin if number else first, _LABELS), line)
