"""Draws docs/images/tiles.svg: how pictures of several shapes are cut, by the engine's own rules.

`make compatibility` runs this; a test holds the file against the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tilewise.inputs.media.tiling import Tiling, choose_grid, count_tiles

PAGE = Path(__file__).parent / "images" / "tiles.svg"
PICTURES = (
    (448, 448, "an icon"),
    (1024, 768, "a photo"),
    (1920, 1080, "a screen"),
    (2480, 3508, "a scanned page"),
    (1600, 200, "a line of text"),
)
TILING = Tiling()
TOKENS = 256
"""Tokens of a tile in every published checkpoint but Flash's: 32 x 32 patches of 14 pixels, four of them a token."""
WIDTH, ROW, TOP = 860, 128, 44
BOX = 100
"""Pixels of the drawing that a picture's longer side takes; tiles have a fixed size of their own."""
TILE = 24


def drawing() -> str:
    height = TOP + ROW * len(PICTURES)
    label = "Pictures of five shapes, the tiles that each is cut into, and the tokens that these become"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}" '
            'font-family="system-ui, sans-serif" font-size="14">',
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fafafa"/>',
            *_titles(),
            *(line for index, picture in enumerate(PICTURES) for line in _row(TOP + ROW * index, *picture)),
            "</svg>\n",
        ]
    )


def _titles() -> Iterator[str]:
    for x, title in ((24, "picture"), (170, "tiles"), (500, "thumbnail"), (600, "what the model reads")):
        yield f'<text x="{x}" y="28" fill="#555" font-weight="600">{title}</text>'


def _row(top: int, width: int, height: int, name: str) -> Iterator[str]:
    """Draw a picture, its tiles, its thumbnail and its sums."""
    grid = choose_grid(width, height, TILING)
    cols, rows = grid
    tiles = count_tiles(grid, TILING.thumbnail)
    middle = top + (ROW - 8) / 2
    scale = BOX / max(width, height)
    yield _rect(24, middle - height * scale / 2, width * scale, height * scale, "#c5cae9", "#3f51b5")
    for index in range(cols * rows):
        x, y = 170 + index % cols * (TILE + 2), middle - rows * (TILE + 2) / 2 + index // cols * (TILE + 2)
        yield _rect(x, y, TILE, TILE, "#c8e6c9", "#2e7d32")
    if tiles > cols * rows:
        yield _rect(500, middle - TILE / 2, TILE, TILE, "#ffe0b2", "#ef6c00")
    yield from _text(600, middle - 12, _sums(width, height, name, grid, tiles))


def _sums(width: int, height: int, name: str, grid: tuple[int, int], tiles: int) -> Sequence[str]:
    cut = f"{grid[0]} x {grid[1]} tiles" + (" + thumbnail" if tiles > grid[0] * grid[1] else "")
    if tiles == 1:
        cut = "1 tile, no thumbnail"
    return f"{name}, {width} x {height}", cut, f"{tiles} x {TOKENS} = {tiles * TOKENS:,} tokens"


def _rect(x: float, y: float, width: float, height: float, fill: str, stroke: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} rx="2" fill="{fill}" stroke="{stroke}"/>'


def _text(x: float, y: float, lines: Sequence[str]) -> Iterator[str]:
    for index, line in enumerate(lines):
        weight = ' font-weight="600"' if index == 0 else ""
        yield f'<text x="{x}" y="{y + 20 * index:.1f}" fill="#222"{weight}>{line}</text>'


if __name__ == "__main__":
    PAGE.write_text(drawing(), encoding="utf-8")
