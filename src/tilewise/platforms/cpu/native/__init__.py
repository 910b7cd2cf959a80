"""Kernels of our own for the CPU, in C++: built once for this machine, checked against the reference, and cached.

`build.py` compiles `src/*.cpp` into one shared object with a plain C interface, and has a process of its own try every
kernel (`check.py`); `kernels.py` has them all, to be called with tensors. Whatever goes wrong on the way is a
`NoKernels` that says why, and the ops of torch take over.
"""


class NoKernels(Exception):
    """There are no kernels here; the message says why, and what would help."""


class KernelsOff(NoKernels):
    """The user wants no kernels."""
