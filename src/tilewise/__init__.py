"""Tilewise: inference and serving for the InternVL family of vision-language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilewise import vllm_modules

if TYPE_CHECKING:
    from tilewise.assets.image import ImageAsset
    from tilewise.assets.video import VideoAsset
    from tilewise.async_llm import AsyncLLM, AsyncLLMEngine
    from tilewise.beam import BeamSearchOutput, BeamSearchParams
    from tilewise.config import EngineConfig
    from tilewise.engine.arg_utils import AsyncEngineArgs, EngineArgs
    from tilewise.errors import TilewiseError
    from tilewise.inputs.prompts import PromptType, TextPrompt, TokensPrompt
    from tilewise.jobs.run import run_batch
    from tilewise.llm import LLM
    from tilewise.llm_engine import LLMEngine
    from tilewise.sampling_params import SamplingParams, StructuredOutputsParams
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
    "LLM": "tilewise.llm",
    "AsyncEngineArgs": "tilewise.engine.arg_utils",
    "AsyncLLM": "tilewise.async_llm",
    "AsyncLLMEngine": "tilewise.async_llm",
    "BeamSearchOutput": "tilewise.beam",
    "BeamSearchParams": "tilewise.beam",
    "CompletionOutput": "tilewise.types",
    "EngineArgs": "tilewise.engine.arg_utils",
    "EngineConfig": "tilewise.config",
    "ImageAsset": "tilewise.assets.image",
    "LLMEngine": "tilewise.llm_engine",
    "PromptType": "tilewise.inputs.prompts",
    "RequestOutput": "tilewise.types",
    "SamplingParams": "tilewise.sampling_params",
    "StructuredOutputsParams": "tilewise.sampling_params",
    "TextPrompt": "tilewise.inputs.prompts",
    "TilewiseError": "tilewise.errors",
    "TokensPrompt": "tilewise.inputs.prompts",
    "VideoAsset": "tilewise.assets.video",
    "run_batch": "tilewise.jobs.run",
}

vllm_modules.install()
__getattr__ = vllm_modules.finder_of("tilewise", _HOMES)
