"""Recognising a picture that was cut before, against cutting it: milliseconds of each, by mode and size.

python benchmarks/media_cache.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tilewise.inputs.media.cache import picture_digest
from tilewise.inputs.media.images import to_rgb
from tilewise.inputs.media.tiling import Tiling, tile_digest, tile_image

ROUNDS = 15
SIZES = {"0.5 megapixels": (820, 615), "4 megapixels": (2310, 1732), "12 megapixels": (4000, 3000)}


def milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def cut(image: Image.Image, tiling: Tiling) -> None:
    """As a request's picture is cut: to RGB, into tiles, each with its digest."""
    for tile in tile_image(to_rgb(image), tiling):
        tile_digest(tile)


def main() -> None:
    table = Table("picture", "mode", "digest, ms", "cutting, ms", "ratio", title=f"medians of {ROUNDS}")
    for name, (width, height) in SIZES.items():
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        for mode in ("RGB", "L", "RGBA", "P"):
            image = Image.fromarray(noise).convert(mode)
            digest = milliseconds(lambda image=image: picture_digest(image, Tiling(), False))
            cutting = milliseconds(lambda image=image: cut(image, Tiling()))
            table.add_row(name, mode, f"{digest:.1f}", f"{cutting:.1f}", f"{cutting / digest:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
