"""Tilewise: inference and serving for the InternVL family of vision-language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilewise.foreign.modules import finder_of, install

if TYPE_CHECKING:
    from tilewise.assets.image import ImageAsset
    from tilewise.assets.video import VideoAsset
    from tilewise.config import EngineConfig
    from tilewise.engine.arg_utils import AsyncEngineArgs, EngineArgs
    from tilewise.entrypoints.async_llm import AsyncLLM, AsyncLLMEngine
    from tilewise.entrypoints.beam_search import BeamSearchOutput, BeamSearchParams
    from tilewise.entrypoints.llm import LLM
    from tilewise.entrypoints.llm_engine import LLMEngine
    from tilewise.errors import TilewiseError
    from tilewise.inputs.prompts import PromptType, TextPrompt, TokensPrompt
    from tilewise.jobs.run import run_batch
    from tilewise.sampling_params import SamplingParams
    from tilewise.structured_outputs import StructuredOutputsParams
    from tilewise.types import CompletionOutput, RequestOutput

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncLLMEngine",
    "BeamSearchOutput",
    "BeamSearchParams",
    "CompletionOutput",
    "EngineArgs",
    "EngineConfig",
    "ImageAsset",
    "LLMEngine",
    "PromptType",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "TextPrompt",
    "TilewiseError",
    "TokensPrompt",
    "VideoAsset",
    "run_batch",
]

_HOMES = {
    "LLM": "tilewise.entrypoints.llm",
    "AsyncEngineArgs": "tilewise.engine.arg_utils",
    "AsyncLLM": "tilewise.entrypoints.async_llm",
    "AsyncLLMEngine": "tilewise.entrypoints.async_llm",
    "BeamSearchOutput": "tilewise.entrypoints.beam_search",
    "BeamSearchParams": "tilewise.entrypoints.beam_search",
    "CompletionOutput": "tilewise.types",
    "EngineArgs": "tilewise.engine.arg_utils",
    "EngineConfig": "tilewise.config",
    "ImageAsset": "tilewise.assets.image",
    "LLMEngine": "tilewise.entrypoints.llm_engine",
    "PromptType": "tilewise.inputs.prompts",
    "RequestOutput": "tilewise.types",
    "SamplingParams": "tilewise.sampling_params",
    "StructuredOutputsParams": "tilewise.structured_outputs",
    "TextPrompt": "tilewise.inputs.prompts",
    "TilewiseError": "tilewise.errors",
    "TokensPrompt": "tilewise.inputs.prompts",
    "VideoAsset": "tilewise.assets.video",
    "run_batch": "tilewise.jobs.run",
}

install()
__getattr__ = finder_of("tilewise", _HOMES)
