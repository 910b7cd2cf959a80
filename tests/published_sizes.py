"""Sizes of the family's checkpoints as their pages state them, rounded as they are there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedSizes:
    """Sizes of a model; None = not found."""

    billions: float | None = None
    """Billions of parameters of the whole model."""
    parts: tuple[float, float] | None = None
    """Billions of parameters of the vision tower and of the language model."""
    gigabytes: float | None = None
    """Size of the folder; the pages mix GB and GiB."""


PUBLISHED: dict[str, PublishedSizes] = {
    "InternVL2-1B": PublishedSizes(gigabytes=1.8),
    "InternVL2-2B": PublishedSizes(gigabytes=4.2),
    "InternVL2-4B": PublishedSizes(gigabytes=7.8),
    "InternVL2-8B": PublishedSizes(gigabytes=16),
    "InternVL2-26B": PublishedSizes(gigabytes=48),
    "InternVL2-40B": PublishedSizes(gigabytes=75),
    "InternVL2-Llama3-76B": PublishedSizes(gigabytes=143),
    "InternVL2_5-1B": PublishedSizes(billions=0.93819, gigabytes=1.8),
    "InternVL2_5-2B": PublishedSizes(billions=2.21, gigabytes=4.2),
    "InternVL2_5-4B": PublishedSizes(billions=3.71, gigabytes=7.8),
    "InternVL2_5-8B": PublishedSizes(billions=8.08, gigabytes=16),
    "InternVL2_5-26B": PublishedSizes(gigabytes=48),
    "InternVL2_5-38B": PublishedSizes(gigabytes=75),
    "InternVL2_5-78B": PublishedSizes(billions=78.41),
    "InternVL3-1B": PublishedSizes(gigabytes=1.8),
    "InternVL3-2B": PublishedSizes(gigabytes=4.2),
    "InternVL3-8B": PublishedSizes(gigabytes=15.9),
    "InternVL3-9B": PublishedSizes(gigabytes=18.3),
    "InternVL3-14B": PublishedSizes(gigabytes=30.2),
    "InternVL3-38B": PublishedSizes(gigabytes=76.8),
    "InternVL3-78B": PublishedSizes(billions=78.41, gigabytes=152),
    "InternVL3_5-1B": PublishedSizes(billions=1.1, parts=(0.3, 0.8)),
    "InternVL3_5-2B": PublishedSizes(billions=2.3, parts=(0.3, 2.0)),
    "InternVL3_5-4B": PublishedSizes(billions=4.7, parts=(0.3, 4.4)),
    "InternVL3_5-8B": PublishedSizes(billions=8.5, parts=(0.3, 8.2)),
    "InternVL3_5-14B": PublishedSizes(billions=15.1, parts=(0.3, 14.8)),
    "InternVL3_5-38B": PublishedSizes(billions=38.4, parts=(5.5, 32.8)),
    "InternVL3_5-30B-A3B": PublishedSizes(billions=30.8, parts=(0.3, 30.5)),
    "InternVL3_5-241B-A28B": PublishedSizes(billions=240.7, parts=(5.5, 235.1)),
    "InternVL3_5-GPT-OSS-20B-A4B-Preview": PublishedSizes(billions=21.2, parts=(0.3, 20.9)),
}
"""Sizes by the names of the checkpoints. Those of Flash are not stated."""
