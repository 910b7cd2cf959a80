"""Fingerprint: a hash over tensors, taken while a model is built from them."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class Fingerprint:
    """A hash over the tensors that it is called with, as far as their internal names begin with one of `prefixes`.

    Names, dtypes, shapes and bytes count, as the modules get them: where a checkpoint lies, how its files are cut and
    which of the formats it has make no difference.
    """

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        self._prefixes = prefixes
        self._hashes: dict[str, Future[bytes]] = {}
        # SHA-256 because most processors have instructions for it: with them it is twice as fast as BLAKE2b.
        self._threads = ThreadPoolExecutor(torch.get_num_threads(), "fingerprint")

    def __call__(self, name: str, tensor: Tensor) -> None:
        if name.startswith(self._prefixes):
            self._hashes[name] = self._threads.submit(tensor_hash, tensor)

    def digest(self) -> bytes:
        """Return the SHA-256 of all tensors seen, whatever their order; no tensor may come after it."""
        whole = hashlib.sha256()
        for name, found in sorted(self._hashes.items()):
            whole.update(f"{name} ".encode() + found.result())
        self._threads.shutdown()
        return whole.digest()


def tensor_hash(tensor: Tensor) -> bytes:
    """Return 32 bytes over dtype, shape and content."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    found.update(tensor.cpu().flatten().view(torch.uint8).numpy().data)
    return found.digest()
