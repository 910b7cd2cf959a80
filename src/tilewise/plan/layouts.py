"""Layouts as flags of `tilewise serve`."""

from __future__ import annotations

from tilewise.layout import Layout


def flags_of(layout: Layout) -> str:
    """The flags of `tilewise serve` that ask for a layout; of one device, none.

    >>> flags_of(Layout(tensor=4, data=2))
    '-tp 4 -dp 2'
    """
    sizes = {"-tp": layout.tensor, "-pp": layout.pipeline, "-dp": layout.data}
    flags = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    if layout.experts is not None:
        flags.append("--enable-expert-parallel")
        flags += [f"--expert-placement-strategy {layout.experts}"] if layout.experts != "linear" else []
    return " ".join(flags)
