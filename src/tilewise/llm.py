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

from tilewise.amounts import GIB
from tilewise.beam import BeamSearch, BeamSearchOutput, BeamSearchParams
from tilewise.config import EngineConfig
from tilewise.engine.core import EngineCore
from tilewise.engine.counters import Counters, StatsLog
from tilewise.engine.scheduler import TokenDelta
from tilewise.errors import InvalidConfig, InvalidRequest
from tilewise.inputs.chat import MediaReader, read_messages
from tilewise.inputs.images import ImageLimits
from tilewise.inputs.media import MediaAccess
from tilewise.inputs.media_cache import MediaCache
from tilewise.inputs.prepare import InputOptions, Preparer
from tilewise.inputs.prompts import PromptInput, read_prompts
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.inputs.video import FrameChoice
from tilewise.outputs.answer import Answer, named_scores
from tilewise.progress import progress_bar
from tilewise.timing import EngineMoments, InputTiming, Timing
from tilewise.types import Logprob, Request, RequestOutput, SamplingParams, Usage
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.hub import find_model

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
        self._stats = None if config.disable_log_stats else StatsLog(_log_interval(), time.monotonic())
        find = partial(find_model, config.model, config.revision, config.hub, config.download_dir)
        # Small files first: what is wrong with a model, or does not fit, shows before gigabytes are fetched.
        folder = CheckpointFolder.open(find(weights=False))
        self._tokenizer = Tokenizer.from_folder(folder.path)
        spec = InputSpec.of(folder, self._tokenizer, config.mm_processor_kwargs)
        # Imported here, not above: torch takes longer to load than all that a caller can get wrong takes to check.
        from tilewise.runner.build import build_runner

        runner, resolved = build_runner(config, folder, self._tokenizer.image_context_id, find)
        self.resolved = resolved
        self._reader = media_reader(config)
        self._cache = MediaCache(int(config.mm_processor_cache_gb * GIB))
        context = resolved.limits.max_model_len
        self._prepare = Preparer(spec, self._tokenizer, context, InputOptions.of(config), self._cache)
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
        return self._stream(_Group(self._tokenizer, request, self._prepare.spec))

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
        reader = self._reader.timed()
        parsed, media = read_messages(messages, reader)
        thinking = bool((template or {}).get("enable_thinking", False))
        request = self._prepare.chat(parsed, media, sampling, processor=processor, thinking=thinking)
        return _came(request, arrival, reader.watch.timing)

    def _run(self, requests: Sequence[Request], show_progress: bool) -> list[RequestOutput]:
        groups = [_Group(self._tokenizer, request, self._prepare.spec) for request in requests]
        with progress_bar("Answering", len(groups), show_progress and len(groups) > 1) as advance:
            for group, _ in self._drive(groups):
                if group.finished:
                    advance(1)
        return [group.output() for group in groups]

    def _stream(self, group: _Group) -> Iterator[tuple[str, RequestOutput]]:
        for _, text in self._drive([group]):
            if text or group.finished:
                yield text, group.output()

    def _drive(self, groups: Sequence[_Group]) -> Iterator[tuple[_Group, str]]:
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
                    answer = group.answers[delta.request_id]
                    text = answer.add(delta.token, delta.finish_reason, delta.stop_reason)
                    if answer.finished and delta.finish_reason is None:
                        self._core.abort(delta.request_id)  # a stop string, which the engine cannot see
                    group.tick(delta)
                    yield group, text
        finally:
            for request_id in owners:
                self._core.abort(request_id)


class _Group:
    """A caller's request and its `n` sequences."""

    def __init__(self, tokenizer: Tokenizer, request: Request, spec: InputSpec) -> None:
        self._request = request
        self._tokens_per_tile = spec.tokens_per_tile
        self._moments: EngineMoments | None = None
        self._last_token: float | None = None
        self._tokens_saved = 0
        self._cached = 0
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._tokenizer = tokenizer
        self.requests = list(_fan_out(request))
        self.answers = {
            single.id: Answer(tokenizer, single.sampling, index, spec.header)
            for index, single in enumerate(self.requests)
        }

    @property
    def finished(self) -> bool:
        return all(answer.finished for answer in self.answers.values())

    def tick(self, delta: TokenDelta) -> None:
        """A token has come."""
        self._tokens_saved, self._cached = delta.image_tokens_saved, delta.cached_tokens
        if self._request.sampling.prompt_logprobs is not None and self._prompt_logprobs is None:
            scores = [named_scores(token, self._tokenizer) for token in delta.prompt_scores]
            self._prompt_logprobs = [None, *scores]
        self._last_token = delta.time
        self._moments = self._moments or delta.moments

    def output(self) -> RequestOutput:
        request, outputs = self._request, [answer.output for answer in self.answers.values()]
        return RequestOutput(
            request_id=request.id,
            prompt=request.prompt,
            prompt_token_ids=list(request.prompt_ids),
            outputs=outputs,
            finished=self.finished,
            num_cached_tokens=self._cached,
            prompt_logprobs=self._prompt_logprobs,
            usage=Usage(
                prompt_tokens=len(request.prompt_ids) - self._tokens_saved,
                completion_tokens=sum(len(output.token_ids) for output in outputs),
                image_tokens=request.num_tiles * self._tokens_per_tile - self._tokens_saved,
                tiles=request.num_tiles,
                image_tokens_saved=self._tokens_saved,
                cached_tokens=self._cached,
            ),
            timing=Timing(
                request.arrival,
                self._moments.first_token if self._moments else None,
                self._last_token if self.finished else None,
                request.inputs,
                self._moments,
            ),
        )


def _came(request: Request, arrival: float, reading: InputTiming) -> Request:
    """When a request came, and what its media took before they were cut."""
    return request.with_(arrival=arrival, inputs=replace(reading, preprocess=request.inputs.preprocess))


def _fan_out(request: Request) -> Iterator[Request]:
    """One request a sequence; with a seed, each has a seed of its own."""
    sampling = request.sampling
    if sampling.n == 1:
        yield request
        return
    for index in range(sampling.n):
        seed = None if sampling.seed is None else sampling.seed + index
        yield request.with_(id=f"{request.id}-{index}", sampling=sampling.with_(n=1, seed=seed))


def _spread(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise InvalidRequest(f"There are {len(params)} sampling_params for {count} prompts: give one, or one for each.")
    return list(params)


def _log_interval() -> float:
    text = os.environ.get("VLLM_LOG_STATS_INTERVAL", "10")
    try:
        return float(text)
    except ValueError:
        raise InvalidConfig(f"VLLM_LOG_STATS_INTERVAL must be a number of seconds, found {text!r}.") from None


def media_reader(config: EngineConfig) -> MediaReader:
    root = config.allowed_local_media_path
    access = MediaAccess(
        allowed_local_media_path=Path(root) if root else None,
        allowed_media_domains=config.allowed_media_domains,
    )
    limits = ImageLimits(max_pixels=config.max_image_pixels)
    frames = FrameChoice(config.num_frames, config.fps)
    return MediaReader(access, limits, config.limit_mm_per_prompt or {}, frames)
