"""Tilewise: inference and serving for the InternVL family of vision-language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewise.assets import ImageAsset
    from tilewise.beam import BeamSearchOutput, BeamSearchParams
    from tilewise.config import EngineConfig
    from tilewise.errors import TilewiseError
    from tilewise.jobs.run import run_batch
    from tilewise.llm import LLM
    from tilewise.sampling_params import SamplingParams, StructuredOutputsParams
from tilewise.types import CompletionOutput, RequestOutput

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "CompletionOutput",
    "EngineConfig",
    "ImageAsset",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "TilewiseError",
    "run_batch",
]

_HOMES = {
    "LLM": "tilewise.llm",
    "BeamSearchOutput": "tilewise.beam",
    "BeamSearchParams": "tilewise.beam",
    "CompletionOutput": "tilewise.types",
    "EngineConfig": "tilewise.config",
    "ImageAsset": "tilewise.assets",
    "RequestOutput": "tilewise.types",
    "SamplingParams": "tilewise.sampling_params",
    "StructuredOutputsParams": "tilewise.sampling_params",
    "TilewiseError": "tilewise.errors",
    "run_batch": "tilewise.jobs.run",
}


def __getattr__(name: str) -> Any:
    """Public names load their module on first use, so that `import tilewise` and `--help` stay quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tilewise' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
