"""Figures of the web chat in HTML: tiles and boxes drawn over a picture as SVG, and a bar of where the time went."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import filterfalse

from tilewise.errors import TilewiseError
from tilewise.inputs.media.tiling import Tiling, choose_grid, count_tiles
from tilewise.outputs.boxes import Box, colours_of
from tilewise.ui.conversation import Exchange, is_video
from tilewise.ui.thumbnails import Thumbnail, thumbnail_of

PARTS = (
    ("download", "#8ecae6"), ("decode", "#219ebc"), ("preprocess", "#a3b18a"), ("queue", "#adb5bd"),
    ("encode", "#f4a261"), ("prefill", "#e76f51"), ("answer", "#6d597a"),
)  # fmt: skip
"""Parts of an answer's time in their order, with their colours."""


@dataclass(frozen=True)
class TileGrid:
    """The way in which a picture is cut: tiles row by row, then a thumbnail of the whole if there are several."""

    size: tuple[int, int]
    columns: int
    rows: int
    tiles: int
    """Tiles, the thumbnail counted."""

    @classmethod
    def of(cls, size: tuple[int, int], tiling: Tiling) -> TileGrid:
        columns, rows = grid = choose_grid(*size, tiling)
        return cls(size, columns, rows, count_tiles(grid, tiling.thumbnail))

    def line(self, tokens_per_tile: int | None = None) -> str:
        """Return one line, such as `1024x768: 4 columns x 3 rows + thumbnail = 13 tiles, 208 tokens`."""
        cells = self.columns * self.rows
        cut = f"{self.columns} columns x {self.rows} rows" if cells > 1 else "one tile"
        thumbnail = " + thumbnail" if self.tiles > cells else ""
        total = f" = {self.tiles} tiles" if self.tiles > 1 else ""
        tokens = f", {self.tiles * tokens_per_tile} tokens" if tokens_per_tile else ""
        return f"{self.size[0]}x{self.size[1]}: {cut}{thumbnail}{total}{tokens}"


def tile_figures(
    files: Iterable[str], tiling: Tiling, tokens_per_tile: int | None, cached: Sequence[Sequence[bool]] = ()
) -> str:
    """Return a figure for each picture with its tiles over it. Files that are no pictures are left out.

    `cached` says for each picture which of its tiles did not have to be encoded, where a server has told.
    """
    found: list[str] = []
    for file in filterfalse(is_video, files):
        try:
            picture = thumbnail_of(str(file))
        except TilewiseError:
            continue
        number = len(found)
        grid = TileGrid.of(picture.size, tiling)
        known = cached[number] if number < len(cached) else ()
        line = grid.line(tokens_per_tile) + _from_cache(known)
        found.append(_figure(picture, _tile_cells(grid, known), line))
    return "".join(found)


def _from_cache(cached: Sequence[bool]) -> str:
    return f"; {sum(cached)} from the cache, {len(cached) - sum(cached)} encoded now" if cached else ""


def _tile_cells(grid: TileGrid, cached: Sequence[bool]) -> str:
    width, height = 1000 / grid.columns, 1000 / grid.rows
    cells = []
    for number in range(grid.columns * grid.rows):
        row, column = divmod(number, grid.columns)
        state = "" if number >= len(cached) else " cached" if cached[number] else " encoded"
        title = f"tile {number + 1}" + (f", {'from the cache' if cached[number] else 'encoded now'}" if state else "")
        cells.append(
            f'<rect class="tile{state}" x="{column * width:.2f}" y="{row * height:.2f}" width="{width:.2f}" '
            f'height="{height:.2f}"><title>{title}</title></rect>'
        )
    return "".join(cells)


def box_figure(file: str, boxes: Sequence[Box]) -> str:
    """Return a figure of a picture with the boxes of an answer over it; a label shows at its box, and on hover."""
    colours = colours_of(boxes)
    shapes, labels = [], []
    for box in boxes:
        left, top, right, bottom = box.pixels((1000, 1000))
        name, colour = html.escape(box.label or "?"), colours[box.label]
        shapes.append(
            f'<rect class="box" x="{left}" y="{top}" width="{max(1, right - left)}" height="{max(1, bottom - top)}" '
            f'stroke="{colour}" fill="{colour}"><title>{name}</title></rect>'
        )
        labels.append(
            f'<span class="label" style="left:{left / 10}%;top:{top / 10}%;background:{colour}">{name}</span>'
        )
    names = ", ".join(dict.fromkeys(box.label or "?" for box in boxes))
    return _figure(thumbnail_of(file), "".join(shapes), names, "".join(labels))


def _figure(picture: Thumbnail, shapes: str, line: str, labels: str = "") -> str:
    caption, (width, height) = html.escape(line), picture.size
    ratio = f"aspect-ratio:{width}/{height};width:min(100%,calc(46vh*{width}/{height}))"
    return (
        f'<figure class="seen"><div class="over" style="{ratio}">'
        f'<img src="data:image/webp;base64,{picture.data}" alt="{caption}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="presentation">{shapes}</svg>{labels}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def time_strip(exchange: Exchange) -> str:
    """Return a bar whose parts are where an answer's time went, with the numbers below; empty before an answer."""
    seconds = {name: value for name, value in exchange.seconds.items() if value > 0}
    total = sum(seconds.values())
    if not total:
        return ""
    bars = "".join(
        f'<span title="{name} {seconds[name]:.3f} s" style="background:{colour};'
        f'flex:{max(seconds[name] / total, 0.004):.4f}"></span>'
        for name, colour in PARTS
        if name in seconds
    )
    words = ", ".join(f"{name} {seconds[name]:.2f} s" for name, _ in PARTS if name in seconds)
    note = f'<p class="counts">{words}<br>{html.escape(exchange.counts)}</p>'
    return f'<div class="strip" role="img" aria-label="{words}">{bars}</div>{note}'
