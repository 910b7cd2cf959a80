"""Numbers that a quantised checkpoint must have to mean anything."""

from __future__ import annotations

from torch import Tensor

from tilewise.errors import InvalidCheckpoint


def checked_scales(name: str, scales: Tensor) -> None:
    """Raise InvalidCheckpoint for a scale that is not finite or not above zero. Tensors without numbers pass."""
    if scales.is_meta:
        return
    wrong = ~(scales.isfinite() & (scales > 0))
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise InvalidCheckpoint(
            f"The tensor {name} has {scales[wrong][0].item()} at {place}, and scales are finite and above 0: the file "
            "is damaged or was written from a layer of zeros; fetch it again."
        )
