"""Entrypoint: what LLM and AsyncLLM have in common, which is all but the engine itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, NoReturn, Self

from tilewise.config import EngineConfig
from tilewise.engine.arg_utils import EngineArgs
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig, NotSupported
from tilewise.ignored import LOG, Ignored
from tilewise.inputs.chat_tokenizer import ChatTokenizer
from tilewise.inputs.media.cache import MediaByUuid
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.hosts import AllowedHosts
from tilewise.inputs.media.images import Opening
from tilewise.inputs.media.limits import MediaBudget, MediaLimits
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.media.video import FrameChoice
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.request_builder import RequestBuilder, check_arguments
from tilewise.plan import Resolved
from tilewise.remote.replicas import memory_part
from tilewise.remote.wire import Launch

SUPPORTED_TASKS = ("generate",)
NO_POOLING = "Models here answer; for embeddings, scores and classes take an engine and a model made for them."
_STAYS = "Weights and KV blocks stay where they are: close this engine, and make another when it is needed."
_TIMES = "`timing` of each result says where its time went; profile the process."


def absent(name: str, instead: str) -> Callable[..., NoReturn]:
    """Return a stand-in for a method of vLLM's that is not there; calling it raises NotSupported with the remedy."""

    def method(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotSupported(f"{type(self).__name__}.{name} is not possible. {instead}")

    return method


@contextmanager
def call_of(name: str, **foreign: Any) -> Iterator[Ignored]:
    """Yield where a call notes names without effect, which are logged once it has made its requests.

    `foreign` are its arguments that are no options here. Raises InvalidField for one that asks for something.
    """
    ignored = Ignored()
    check_arguments(ignored, **foreign)
    yield ignored
    LOG.take(ignored.reasons, name)


class Entrypoint:
    """An engine's options, the small files of its model, and requests made of a caller's arguments."""

    config: EngineConfig

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **of_vllm: Any) -> Self:
        """Make an engine. Further keywords, about vLLM's parts (loggers, usage, start), are named as without effect."""
        LOG.take(dict.fromkeys(of_vllm, "it is about parts that vLLM alone has"), cls.__name__)
        return cls(**engine_args.given)

    def _read(self, config: EngineConfig) -> Launch:
        """Read all but the weights, and return what an engine is started from. Raises what is wrong with either."""
        self.config = config
        part = memory_part(config)
        self._model = ModelInputs.of(config)
        self._reader = replace(media_reader(config), embeddings=self._model.embeddings)
        return Launch.of(self._model, part)

    def _prepare_for(self, resolved: Resolved) -> None:
        """Make what prepares requests for an engine that has started."""
        self.resolved = resolved
        self._prepare = self._model.preparer(resolved)
        self._build = RequestBuilder(self._prepare, self._reader, self.config.scheduling_policy == "priority")

    @property
    def inputs(self) -> Preparer:
        """The model's template, tokenizer and tiling."""
        return self._prepare

    def get_tokenizer(self) -> ChatTokenizer:
        """Return the tokenizer under transformers' names; `inputs.tokenizer` is the one that requests are made with."""
        return self._model.chat_tokenizer

    @cached_property
    def model_config(self) -> SimpleNamespace:
        """The part of vLLM's ModelConfig that programs read."""
        return self._model.model_config(self.resolved.limits.max_model_len)

    def close(self) -> None:
        """End the engine; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    encode = absent("encode", NO_POOLING)
    sleep = absent("sleep", _STAYS)
    wake_up = absent("wake_up", _STAYS)
    release_kv_cache_memory = absent("release_kv_cache_memory", _STAYS)
    start_profile = absent("start_profile", _TIMES)
    stop_profile = absent("stop_profile", _TIMES)


def check_model(model: object) -> str:
    """Return the model's name. Raises InvalidConfig for None, which would be the default: a variable was empty."""
    if model is None:
        raise InvalidConfig("model must be a text, got None: give 'demo', a folder or a hub id.")
    return model  # type: ignore[return-value]


def media_reader(config: EngineConfig) -> MediaReader:
    """Make the reader of media. Raises InvalidConfig for a host that is none, and a limit of the environment that is no
    number."""
    root = config.allowed_local_media_path
    AllowedHosts.of(config.allowed_media_domains)
    media = MediaLimits.of(os.environ)
    access = MediaAccess(
        allowed_local_media_path=Path(root) if root else None,
        allowed_media_domains=config.allowed_media_domains,
        limits=media,
    )
    if not Environment.here().allow_redirects:
        access = replace(access, max_redirects=0)
    frames = FrameChoice(config.num_frames, config.fps)
    # Without a cache nothing of a request is held on to when it ends, its files included.
    handles = MediaByUuid(media.handle_bytes if config.mm_processor_cache_gb != 0 else 0)
    counts = config.limit_mm_per_prompt or {}
    return MediaReader(access, Opening.of(config), counts, frames, handles, budget=MediaBudget(media))
