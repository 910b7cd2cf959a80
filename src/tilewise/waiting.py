"""How long the threads of OpenMP, which is torch's, look for work before they sleep: read when torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping

_LOOKS = "1000"
"""Some microseconds. GNU's default is milliseconds, in which they keep cores from whoever else computes: the kernels'
own threads, the server beside the engine, other programs."""


def short_waits(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to set besides; none if the user has said how threads wait."""
    said = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys()
    return {} if said else {"GOMP_SPINCOUNT": _LOOKS}
