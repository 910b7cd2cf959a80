"""Numbers that a quantised checkpoint must have to mean anything."""

from __future__ import annotations

from torch import Tensor

from tilewise.errors import GET_AGAIN, InvalidCheckpoint
from tilewise.weights.quantization import StoredTensors


def wrong_tensor(tensors: StoredTensors, name: str, found: str, expected: str) -> InvalidCheckpoint:
    """The error for a tensor of which `found` is true ("has shape [3]"), naming its file and the remedy."""
    return InvalidCheckpoint(f"{tensors.place(name)}: the tensor {name} {found}, expected {expected}; {GET_AGAIN}.")


def checked_scales(tensors: StoredTensors, name: str, scales: Tensor, of_rows: bool = False) -> None:
    """Raise InvalidCheckpoint for a scale that is zero or not finite, or below zero where it is one `of_rows`.

    Those of weights may be negative: AutoRound's are where the largest number of a group is, whose code is the lowest.
    Tensors without numbers pass.
    """
    if scales.is_meta:
        return
    wrong = ~(scales.isfinite() & ((scales > 0) if of_rows else (scales != 0)))
    if wrong.any():
        place, allowed = wrong.nonzero()[0].tolist(), "above 0" if of_rows else "not 0"
        found = f"has {scales[wrong][0].item()} at {place}"
        raise wrong_tensor(tensors, name, found, f"scales that are finite and {allowed}")
