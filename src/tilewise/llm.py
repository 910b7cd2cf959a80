"""LLM: the engine in the caller's process. Method names, argument names and results are vLLM's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tilewise.beam import BeamSearch, BeamSearchOutput, BeamSearchParams
from tilewise.config import EngineConfig
from tilewise.engine.core import EngineCore
from tilewise.engine.counters import Counters, StatsLog
from tilewise.errors import InvalidConfig, InvalidRequest
from tilewise.inputs.chat import read_messages
from tilewise.inputs.draft import find_draft
from tilewise.inputs.images import ImageLimits
from tilewise.inputs.media import MediaAccess
from tilewise.inputs.media_budget import MediaBudget
from tilewise.inputs.media_cache import MediaCache
from tilewise.inputs.media_handles import MediaHandles
from tilewise.inputs.media_limits import MediaLimits
from tilewise.inputs.media_reader import LOCAL, MediaReader
from tilewise.inputs.prepare import InputOptions, Preparer
from tilewise.inputs.prompts import PromptInput, read_prompts
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.inputs.video import FrameChoice
from tilewise.inputs.web.hosts import AllowedHosts
from tilewise.outputs.group import AnswerGroup
from tilewise.progress import progress_bar
from tilewise.resize import resizer
from tilewise.sampling_params import SamplingParams
from tilewise.timing import InputTiming
from tilewise.types import Request, RequestOutput
from tilewise.waiting import short_waits
from tilewise.weights.checkpoint import Checkpoint

Messages = Sequence[dict[str, Any]]


class LLM:
    """Answers prompts about pictures and videos.

    `model` is 'demo', a folder or a hub id; every field of EngineConfig is a keyword.

    >>> from tilewise import LLM, SamplingParams, ImageAsset
    >>> llm = LLM("demo")
    >>> question = {"role": "user", "content": [
    ...     {"type": "image_pil", "image_pil": ImageAsset("stop_sign").pil_image},
    ...     {"type": "text", "text": "What colour is the sign?"}]}
    >>> llm.chat([question], SamplingParams(temperature=0))[0].outputs[0].text  # doctest: +SKIP
    """

    def __init__(self, model: str = "demo", **options: Any) -> None:
        self.config = config = EngineConfig.of(model=model, **options)
        self._stats = None if config.disable_log_stats else StatsLog(log_interval(), time.monotonic())
        self._reader = media_reader(config)
        checkpoint = Checkpoint.find(config.model, config.revision, config.hub, config.download_dir)
        folder = checkpoint.folder
        self._tokenizer = Tokenizer.from_folder(folder.path)
        spec = InputSpec.of(folder, self._tokenizer, config.mm_processor_kwargs)
        os.environ.update(short_waits(os.environ))
        # Imported here, not above: torch takes longer to load than all that a caller can get wrong takes to check.
        from tilewise.runner.build import build_runner

        draft = find_draft(config, self._tokenizer)
        runner, resolved = build_runner(config, checkpoint, self._tokenizer.image_context_id, draft)
        self.resolved = resolved
        self._cache = MediaCache.of(config.mm_processor_cache_gb)
        context = resolved.limits.max_model_len
        resize = resizer(resolved.resize_kernels)
        self._prepare = Preparer(spec, self._tokenizer, context, InputOptions.of(config), self._cache, resize)
        self._core = EngineCore(runner, resolved.limits, resolved.overlap)

    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        mm_processor_kwargs: dict[str, Any] | None = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue raw prompts: text, token ids, or dicts with `prompt` (or `prompt_token_ids`) and
        `multi_modal_data` {"image": picture or list, "video": frames or list of them}.

        A dict whose `prompt` is a list of texts asks each of them about the same media. Cached prefixes are shared
        among prompts of one `cache_salt` alone. `priority` has a number for each prompt, the lowest first served, under
        `scheduling_policy="priority"`.
        """
        requests = self._prompt_requests(prompts, sampling_params, mm_processor_kwargs)
        return self._run(self._prioritised(requests, priority), use_tqdm)

    def _prioritised(self, requests: list[Request], priority: Sequence[int] | None) -> list[Request]:
        if priority is None:
            return requests
        if len(priority) != len(requests) or not all(type(number) is int for number in priority):
            raise InvalidRequest(f"priority must be a list of {len(requests)} whole numbers, got {priority!r:.80}.")
        if self.config.scheduling_policy != "priority" and any(priority):
            raise InvalidRequest('priority has no effect under scheduling_policy="fcfs": choose "priority".')
        return [request.with_(priority=number) for request, number in zip(requests, priority, strict=True)]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, in OpenAI's form, with the model's own template.

        `chat_template_kwargs={"enable_thinking": True}` asks for reasoning before the answer.
        """
        several = [messages] if not messages or isinstance(messages[0], dict) else messages
        params = _spread(sampling_params, len(several))
        requests = [
            self._chat_request(item, sampling, chat_template_kwargs, mm_processor_kwargs)  # type: ignore[arg-type]
            for item, sampling in zip(several, params, strict=True)
        ]
        return self._run(requests, use_tqdm)

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        chat_template_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> Iterator[tuple[str, RequestOutput]]:
        """One conversation's answer as it grows: each new piece of text, and the whole so far."""
        sampling = sampling_params or SamplingParams()
        if sampling.n > 1:
            raise InvalidRequest(f"A stream is of one answer, n={sampling.n}: use chat.")
        request = self._chat_request(messages, sampling, chat_template_kwargs, mm_processor_kwargs)
        return self._stream(AnswerGroup(self._tokenizer, request, self._prepare.spec))

    def beam_search(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        params: BeamSearchParams,
        *,
        use_tqdm: bool = False,
    ) -> list[BeamSearchOutput]:
        """The likeliest continuations of each raw prompt (in any form that `generate` takes), best first."""
        limits = self.resolved.limits
        longest = min(limits.max_model_len, (limits.num_blocks - 1) * limits.block_size)
        search = BeamSearch(params, self._tokenizer, self._prepare.spec.end_ids, longest)
        requests = self._prompt_requests(prompts, params.prompt_sampling, None)
        with progress_bar("Searching", params.max_tokens, use_tqdm) as advance:
            return search.run(requests, partial(self._run, show_progress=False), advance)

    def answer_each(self, requests: Sequence[Request]) -> Iterator[tuple[int, RequestOutput]]:
        """Answers in the order in which they are whole, each with the place of its request; `inputs` makes requests."""
        groups = [AnswerGroup(self._tokenizer, request, self._prepare.spec) for request in requests]
        places = {id(group): place for place, group in enumerate(groups)}
        for group, _ in self._drive(groups):
            if group.finished:
                yield places[id(group)], group.output()

    @property
    def inputs(self) -> Preparer:
        """The model's template, tokenizer and tiling."""
        return self._prepare

    @property
    def counters(self) -> Counters:
        """Since the start; a copy."""
        media = self._cache.counts
        return replace(self._core.counters, mm_cache_queries=media.queries, mm_cache_hits=media.hits)

    def get_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def close(self) -> None:
        self._core.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prompt_requests(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        processor: dict[str, Any] | None,
    ) -> list[Request]:
        parsed = read_prompts(prompts, self._reader)
        return [
            _came(
                self._prepare.prompt(
                    item.prompt, item.media, params, processor={**(processor or {}), **item.processor}
                ),
                item.arrival,
                item.reading,
            ).with_(cache_salt=item.cache_salt)
            for item, params in zip(parsed, _spread(sampling, len(parsed)), strict=True)
        ]

    def _chat_request(
        self,
        messages: Messages,
        sampling: SamplingParams,
        template: dict[str, Any] | None,
        processor: dict[str, Any] | None,
    ) -> Request:
        unknown = set(template or {}) - {"enable_thinking"}
        if unknown:
            raise InvalidRequest(f"chat_template_kwargs knows enable_thinking, got {', '.join(sorted(unknown))}.")
        arrival = time.monotonic()  # before media are fetched and decoded: waiting for them is waiting too
        reader = self._reader.timed(scope=LOCAL)
        parsed, media = read_messages(messages, reader)
        thinking = bool((template or {}).get("enable_thinking", False))
        request = self._prepare.chat(parsed, media, sampling, processor=processor, thinking=thinking)
        return _came(request, arrival, reader.watch.timing)

    def _run(self, requests: Sequence[Request], show_progress: bool) -> list[RequestOutput]:
        groups = [AnswerGroup(self._tokenizer, request, self._prepare.spec) for request in requests]
        with progress_bar("Answering", len(groups), show_progress and len(groups) > 1) as advance:
            for group, _ in self._drive(groups):
                if group.finished:
                    advance(1)
        return [group.output() for group in groups]

    def _stream(self, group: AnswerGroup) -> Iterator[tuple[str, RequestOutput]]:
        for _, text in self._drive([group]):
            if text or group.finished:
                yield text, group.output()

    def _drive(self, groups: Sequence[AnswerGroup]) -> Iterator[tuple[AnswerGroup, str]]:
        """Submit, and step until all have finished; whatever goes wrong, nothing stays behind in the engine."""
        owners = {request.id: group for group in groups for request in group.requests}
        try:
            for group in groups:
                for request in group.requests:
                    self._core.submit(request)
            while not all(group.finished for group in groups):
                deltas = self._core.step()
                if self._stats is not None:
                    self._stats.tick(self.counters, self._core.load, time.monotonic())
                for delta in deltas:
                    group = owners[delta.request_id]
                    piece = group.take(delta)
                    if piece is None:
                        continue
                    if piece.engine_goes_on:
                        self._core.abort(delta.request_id)
                    yield group, piece.text
        finally:
            for request_id in owners:
                self._core.abort(request_id)


def _came(request: Request, arrival: float, reading: InputTiming) -> Request:
    """When a request came, and what its media took before they were cut."""
    return request.with_(arrival=arrival, inputs=replace(reading, preprocess=request.inputs.preprocess))


def _spread(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(f"There are {len(params)} sampling_params for {count} prompts: give one, or one for each.")
    return list(params)


def log_interval() -> float:
    text = os.environ.get("VLLM_LOG_STATS_INTERVAL", "10")
    try:
        return float(text)
    except ValueError:
        raise InvalidConfig(f"VLLM_LOG_STATS_INTERVAL must be a number of seconds, found {text!r}.") from None


def media_reader(config: EngineConfig) -> MediaReader:
    """Raises InvalidConfig for hosts that are none, and for a limit in the environment that is no number."""
    root = config.allowed_local_media_path
    AllowedHosts.of(config.allowed_media_domains)
    media = MediaLimits.of(os.environ)
    access = MediaAccess(
        allowed_local_media_path=Path(root) if root else None,
        allowed_media_domains=config.allowed_media_domains,
        limits=media,
    )
    limits = ImageLimits.of(config)
    frames = FrameChoice(config.num_frames, config.fps)
    # Without a cache nothing of a request is held on to when it ends, its files included.
    handles = MediaHandles(media.handle_bytes if config.mm_processor_cache_gb != 0 else 0)
    counts = config.limit_mm_per_prompt or {}
    turned = config.exif_orientation
    return MediaReader(access, limits, counts, frames, handles, exif_orientation=turned, budget=MediaBudget(media))
