"""The name under which a model's encoded tiles are kept: equal only where the rows are."""

from __future__ import annotations

import hashlib

import torch

from tilewise.models.config import ModelConfig
from tilewise.models.tile_encoder import PIXEL_MEAN, PIXEL_STD

ENCODER_PARTS = ("vision.", "projector.", "flash.")
"""Prefixes of the tensors that rows and scores are computed from."""

VERSION = 1
"""To be raised with every change of the encoder's arithmetic, of a tile's digest, or of the files."""


def model_key(weights: bytes, config: ModelConfig, dtype: torch.dtype, arithmetic: str) -> str:
    """32 hexadecimal digits over all that rows depend on beside the pixels; `weights` is the tensors' fingerprint.

    `arithmetic` names the platform, its ops and the quantisation, because each of them rounds in its own way. Releases
    of torch and, in the ordinary mode, sizes of batches do so too, within the same tolerance: those are taken as equal,
    as they are within one run.
    """
    facts = (
        VERSION,
        arithmetic,
        dtype,
        config.vision,
        (config.tile_size, config.shuffle_block, config.shuffle_version, config.flash is not None),
        (PIXEL_MEAN, PIXEL_STD),
    )
    return hashlib.sha256(weights + repr(facts).encode()).hexdigest()[:32]
