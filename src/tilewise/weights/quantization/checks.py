"""Numbers that a quantised checkpoint must have to mean anything."""

from __future__ import annotations

from torch import Tensor

from tilewise.errors import InvalidCheckpoint


def checked_scales(name: str, scales: Tensor, of_rows: bool = False) -> None:
    """Raise InvalidCheckpoint for a scale that is zero or not finite, or below zero where it is one `of_rows`.

    Those of weights may be negative: AutoRound's are where the largest number of a group is, whose code is the lowest.
    Tensors without numbers pass.
    """
    if scales.is_meta:
        return
    wrong = ~(scales.isfinite() & ((scales > 0) if of_rows else (scales != 0)))
    if wrong.any():
        place, allowed = wrong.nonzero()[0].tolist(), "above 0" if of_rows else "not 0"
        raise InvalidCheckpoint(
            f"The tensor {name} has {scales[wrong][0].item()} at {place}, and scales are finite and {allowed}: the "
            "file is damaged or was written from a layer of zeros; fetch it again."
        )
