"""Layout: how the work of a model is shared out over devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tilewise.errors import InvalidConfig

ExpertPlacement = Literal["linear", "round_robin"]
TowerMode = Literal["data", "weights"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout of `data` replicas of the model; each is a pipeline of `pipeline` stages, and each stage has `tensor`
    ranks.

    The ranks of a stage share its layers by heads and by columns. With `experts`, each of them has some of its
    experts whole; without, it has a part of every one.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    experts: ExpertPlacement | None = None
    spread_rows: int | None = None
    """Least tokens of passes in which each rank of a stage has a share of the rows between products; None = never."""
    tower: TowerMode = "data"
    """data: each rank of the first stage has the whole tower, and encodes some of the tiles; weights: each has some of
    the tower's heads, and all encode every tile together."""

    @property
    def ranks(self) -> int:
        """Ranks of one replica, numbered stage by stage."""
        return self.tensor * self.pipeline

    @property
    def devices(self) -> int:
        return self.ranks * self.data

    def layers(self, stage: int, total: int) -> range:
        """Return the decoder layers of a stage."""
        if self.pipeline > total:
            raise InvalidConfig(
                f"pipeline_parallel_size={self.pipeline} is more than the {total} layers of the model: lower it."
            )
        return _share(stage, self.pipeline, total)

    def experts_of(self, rank: int, total: int) -> tuple[int, ...]:
        """Return the experts that a rank of a stage has whole.

        linear: neighbouring ones; round_robin: every `tensor`th (vLLM's --expert-placement-strategy).
        """
        if self.experts == "round_robin":
            return tuple(range(rank, total, self.tensor))
        return tuple(_share(rank, self.tensor, total))


def _share(part: int, parts: int, total: int) -> range:
    """Return which of `total` a part has: as many as the others, and one more in the first ones where some are left."""
    each, more = divmod(total, parts)
    start = part * each + min(part, more)
    return range(start, start + each + (part < more))


def flags_of(layout: Layout) -> str:
    """Return the flags of `tilewise serve` that ask for a layout; none for a single device.

    >>> flags_of(Layout(tensor=4, data=2))
    '-tp 4 -dp 2'
    """
    sizes = {"-tp": layout.tensor, "-pp": layout.pipeline, "-dp": layout.data}
    flags = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    if layout.experts is not None:
        flags.append("--enable-expert-parallel")
        flags += [f"--expert-placement-strategy {layout.experts}"] if layout.experts != "linear" else []
    return " ".join(flags)
