"""vLLM's modules that have no counterpart here, for programs in which only the package's name was changed.

`from tilewise.v1.engine.async_llm import AsyncLLM` finds AsyncLLM where it is. A name that cannot be had raises an
ImportError that says what to do instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TOOLS = "tilewise.media_tools"
_MEDIA_TOOLS = (
    *("fetch_image", "fetch_video", "encode_image_base64", "encode_image_url"),
    *("encode_video_base64", "encode_video_url"),
)
_PROMPTS = dict.fromkeys(("PromptType", "TextPrompt", "TokensPrompt"), "tilewise.inputs.prompts")
_PARSER = {"FlexibleArgumentParser": "tilewise.engine.arg_utils"}
MODULES: dict[str, dict[str, str]] = {
    "engine.async_llm_engine": {"AsyncLLMEngine": "tilewise.async_llm"},
    "engine.llm_engine": {"LLMEngine": "tilewise.llm_engine"},
    "entrypoints": {},
    "entrypoints.llm": {"LLM": "tilewise.llm"},
    "inputs.data": _PROMPTS,
    "logprobs": {"Logprob": "tilewise.types"},
    "lora": {},
    "lora.request": {"LoRARequest": "tilewise.inputs.request_builder"},
    "multimodal": {},
    "multimodal.image": dict.fromkeys(("convert_image_mode", "rescale_image_size"), _TOOLS),
    "multimodal.utils": dict.fromkeys(_MEDIA_TOOLS, _TOOLS),
    "utils": _PARSER,
    "utils.argparse_utils": _PARSER,
    "v1": {},
    "v1.engine": {},
    "v1.engine.async_llm": {"AsyncLLM": "tilewise.async_llm"},
    "v1.engine.llm_engine": {"LLMEngine": "tilewise.llm_engine"},
}
"""Names of each module, and the modules here in which they are."""
_NO_POOLING = "models here answer, they are not for embeddings, scores and classes"
ABSENT = {
    **dict.fromkeys(
        (
            *("PoolingParams", "PoolingOutput", "PoolingRequestOutput", "EmbeddingOutput", "EmbeddingRequestOutput"),
            *("ClassificationOutput", "ClassificationRequestOutput", "ScoringOutput", "ScoringRequestOutput"),
        ),
        _NO_POOLING,
    ),
    "ModelRegistry": "models of other families cannot be added",
    "initialize_ray_cluster": "one machine computes",
    "EmbedsPrompt": "embeddings are not taken in place of prompts; send text or ids",
    "fetch_audio": "InternVL models do not hear",
    "AudioAsset": "InternVL models do not hear",
}
"""Names that cannot be had, and why."""


def finder_of(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that loads each name's home on first use, so that importing stays quick."""

    def find(name: str) -> Any:
        if name in ABSENT:
            raise ImportError(f"{module} has no {name}: {ABSENT[name]}.")
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return find


class _Finder(MetaPathFinder, Loader):
    """Asked for modules that have no file."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        known = fullname.startswith("tilewise.") and fullname.removeprefix("tilewise.") in MODULES
        return ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        homes = MODULES[module.__name__.removeprefix("tilewise.")]
        module.__getattr__ = finder_of(module.__name__, homes)  # type: ignore[method-assign]


def install() -> None:
    """Let imports find the modules above, behind all that have files."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
