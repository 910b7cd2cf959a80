"""LLM: the engine in the caller's process. Method names, argument names and results are vLLM's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from tilewise.beam import BeamSearch, BeamSearchOutput, BeamSearchParams
from tilewise.config import EngineConfig
from tilewise.engine.arg_utils import EngineArgs
from tilewise.engine.core import EngineCore
from tilewise.engine.counters import Counters, StatsLog
from tilewise.engine.delta import TokenDelta
from tilewise.errors import InvalidConfig, InvalidRequest, NotSupported, RankDied
from tilewise.foreign.keywords import named_keywords
from tilewise.host import Memory, short_waits
from tilewise.ignored import LOG, Ignored
from tilewise.inputs.chat_tokenizer import ChatTokenizer
from tilewise.inputs.images import ImageLimits
from tilewise.inputs.media import MediaAccess
from tilewise.inputs.media_cache import MediaByUuid
from tilewise.inputs.media_limits import MediaBudget, MediaLimits
from tilewise.inputs.media_reader import MediaReader
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.prompts import PromptInput
from tilewise.inputs.request_builder import ChatOptions, Messages, RequestBuilder, check_arguments, spread
from tilewise.inputs.sampling import default_sampling
from tilewise.inputs.video import FrameChoice
from tilewise.inputs.web.hosts import AllowedHosts
from tilewise.outputs.group import AnswerGroup
from tilewise.plan import Resolved
from tilewise.progress import Bar, progress_bar
from tilewise.remote.engine_process import memory_part
from tilewise.sampling_params import SamplingParams
from tilewise.types import Request, RequestOutput

if TYPE_CHECKING:
    from tilewise.llm_engine import LLMEngine
    from tilewise.remote.core import RemoteCore
    from tilewise.remote.supervisor import Supervisor

SUPPORTED_TASKS = ("generate",)
NO_POOLING = "Models here answer; for embeddings, scores and classes take an engine and a model made for them."
STAYS = "Weights and KV blocks stay where they are: close this engine, and make another when it is needed."


TIMES = "`timing` of each result says where its time went; profile the process."


def absent(name: str, instead: str) -> Callable[..., NoReturn]:
    """Return a stand-in for a method of vLLM's that is not there; calling it raises NotSupported with the remedy."""

    def method(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotSupported(f"{type(self).__name__}.{name} is not possible. {instead}")

    return method


class LLM:
    """An engine that answers prompts about pictures and videos.

    `model` is 'demo', a folder or a hub id; every field of EngineConfig is a keyword, and so is every option of vLLM's
    engine, which works, is logged as having no effect, or is refused by name.

    >>> from tilewise import LLM, SamplingParams, ImageAsset
    >>> llm = LLM("demo")
    >>> question = {"role": "user", "content": [
    ...     {"type": "image_pil", "image_pil": ImageAsset("stop_sign").pil_image},
    ...     {"type": "text", "text": "What colour is the sign?"}]}
    >>> llm.chat([question], SamplingParams(temperature=0))[0].outputs[0].text  # doctest: +SKIP
    """

    def __init__(self, model: str = "demo", *, chat_template: None = None, **options: Any) -> None:
        if chat_template is not None:
            raise InvalidConfig("chat_template is not possible: prompts follow the template that the model was trained "
                                "with. Leave it out, or render prompts and call generate.")  # fmt: skip
        self._generation = (
            options.pop("generation_config", None) or "auto",
            options.pop("override_generation_config", None),
        )
        self.config = config = EngineConfig.of(model=check_model(model), **options).for_whole_answers()
        engines = 0 if config.disable_log_stats else config.data_parallel_size
        self._stats = [StatsLog(log_interval(), time.monotonic(), number) for number in range(engines)]
        part = memory_part(config)
        self._model = found = ModelInputs.of(config)
        self._defaults = self.get_default_sampling_params()
        self._tokenizer = found.tokenizer
        reader = replace(media_reader(config), embeddings=found.embeddings)
        self._core, self._engines, self.resolved = core_of(found, part)
        self._prepare = found.preparer(self.resolved)
        self._build = RequestBuilder(self._prepare, reader, config.scheduling_policy == "priority")
        self._queued: list[AnswerGroup] = []

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLM:
        return cls(**engine_args.given)

    @named_keywords()
    def generate(
        self,
        prompts: PromptInput | Sequence[PromptInput] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Any = None,
        use_tqdm: Bar = True,
        mm_processor_kwargs: dict[str, Any] | None = None,
        priority: int | Sequence[int] | None = None,
        lora_request: None = None,
        tokenization_kwargs: None = None,
        prompt_adapter_request: None = None,
        guided_options_request: None = None,
    ) -> list[RequestOutput]:
        """Continue raw prompts: text, token ids, or dicts with `prompt` (or `prompt_token_ids`) and
        `multi_modal_data` {"image": picture or list, "video": frames or list of them}.

        A dict whose `prompt` is a list of texts asks each of them about the same media. Cached prefixes are shared
        among prompts of one `cache_salt` alone. `priority` has a number for each prompt, the lowest first served, under
        `scheduling_policy="priority"`. Without `sampling_params` those of the checkpoint's generation_config hold.
        `prompt_token_ids` is the older way to send ids. The last four have to be None.
        """
        ignored = Ignored()
        check_arguments(
            ignored,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            prompt_adapter_request=prompt_adapter_request,
            guided_options_request=guided_options_request,
        )
        if prompt_token_ids is not None:
            prompts = _with_ids(prompts, prompt_token_ids)
        requests = self._build.prompts(prompts, self._sampling(sampling_params), mm_processor_kwargs, ignored)
        LOG.take(ignored.reasons, "generate")
        return self._run(self._build.prioritised(requests, priority), use_tqdm)

    @named_keywords()
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Bar = True,
        lora_request: None = None,
        *,
        priority: int | Sequence[int] | None = None,
        chat_template: None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, in OpenAI's form, with the model's own template.

        `chat_template_kwargs={"enable_thinking": True}` asks for reasoning before the answer, `continue_final_message`
        goes on with the last message in place of answering it, `tools` are definitions of functions. `priority` is that
        of `generate`. `lora_request`, `chat_template` and `tokenization_kwargs` have to be None.
        """
        options = ChatOptions(
            chat_template,
            chat_template_kwargs,
            add_generation_prompt,
            continue_final_message,
            tools,
            mm_processor_kwargs,
        )
        foreign = {
            "lora_request": lora_request,
            "tokenization_kwargs": tokenization_kwargs,
            "chat_template_content_format": chat_template_content_format,
        }
        requests = self._chat_requests(messages, sampling_params, options, **foreign)
        return self._run(self._build.prioritised(requests, priority), use_tqdm)

    @named_keywords()
    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        chat_template_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> Iterator[tuple[str, RequestOutput]]:
        """Yield one conversation's answer as it grows: each new piece of text, and the whole so far."""
        options = ChatOptions(chat_template_kwargs=chat_template_kwargs, mm_processor_kwargs=mm_processor_kwargs)
        sampling = self._sampling(sampling_params)
        if isinstance(sampling, SamplingParams) and sampling.n > 1:
            raise InvalidRequest(f"A stream is of one answer, n={sampling.n}: use chat.")
        (request,) = self._chat_requests([messages], sampling, options)
        return self._stream(self._group(request))

    @named_keywords()
    def beam_search(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: Bar = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """Return the likeliest continuations of each raw prompt (in any form that `generate` takes), best first.

        `concurrency_limit` is the most prompts that are searched at a time.
        """
        ignored = Ignored()
        check_arguments(ignored, lora_request=lora_request)
        limits = self.resolved.limits
        longest = min(limits.max_model_len, (limits.num_blocks - 1) * limits.block_size)
        search = BeamSearch(params, self._tokenizer, self._prepare.spec.end_ids, longest)
        requests = self._build.prompts(prompts, params.prompt_sampling, None, ignored)
        LOG.take(ignored.reasons, "beam_search")
        size = concurrency_limit or max(1, len(requests))
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        with progress_bar("Searching", params.max_tokens * len(parts), use_tqdm) as advance:
            ask = partial(self._run, show_progress=False)
            return [output for part in parts for output in search.run(part, ask, advance)]

    @named_keywords()
    def enqueue(
        self,
        prompts: PromptInput | Sequence[PromptInput],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[str]:
        """Prepare raw prompts for `wait_for_completion`; return the ids of their requests."""
        ignored = Ignored()
        requests = self._build.prompts(prompts, self._sampling(sampling_params), mm_processor_kwargs, ignored)
        LOG.take(ignored.reasons, "enqueue")
        self._queued += [self._group(request) for request in self._build.prioritised(requests, priority)]
        return [request.id for request in requests]

    @named_keywords()
    def wait_for_completion(self, *, use_tqdm: Bar = True) -> list[RequestOutput]:
        """Return the answers to all prompts that were enqueued."""
        groups, self._queued = self._queued, []
        return self._finish(groups, use_tqdm)

    def answer_each(self, requests: Sequence[Request]) -> Iterator[tuple[int, RequestOutput]]:
        """Yield answers as they become whole, each with the place of its request; `inputs` makes requests."""
        groups = [self._group(request) for request in requests]
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
        """A copy of what was counted since the start."""
        media = self._prepare.cache.counts
        return replace(self._core.counters, mm_cache_queries=media.queries, mm_cache_hits=media.hits)

    def get_tokenizer(self) -> ChatTokenizer:
        """Return the tokenizer under transformers' names; `inputs.tokenizer` is the one that requests are made with."""
        return self._model.chat_tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Return what the checkpoint's generation_config.json says, or what `generation_config` and
        `override_generation_config` of this LLM say instead; a new one each time."""
        source, override = self._generation
        return SamplingParams(**default_sampling(source, override, self._model.checkpoint.folder))

    @named_keywords()
    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget all prefixes that were computed; return True if none is left."""
        ignored = Ignored()
        check_arguments(ignored, reset_running_requests=reset_running_requests, reset_connector=reset_connector)
        LOG.take(ignored.reasons, "reset_prefix_cache")
        return self._core.reset("prefix")

    def reset_mm_cache(self) -> None:
        """Forget pictures that have been cut."""
        self._prepare.cache.clear()

    @cached_property
    def llm_engine(self) -> LLMEngine:
        """This engine in a form that the caller steps; not to be used while a call of this LLM runs."""
        from tilewise.llm_engine import LLMEngine

        return LLMEngine(self)

    @cached_property
    def model_config(self) -> SimpleNamespace:
        """The part of vLLM's ModelConfig that programs read."""
        return self._model.model_config(self.resolved.limits.max_model_len)

    @property
    def supported_tasks(self) -> list[str]:
        return list(SUPPORTED_TASKS)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return SUPPORTED_TASKS

    def get_world_size(self, include_dp: bool = True) -> int:
        return self.config.layout.devices if include_dp else self.config.layout.ranks

    encode = absent("encode", NO_POOLING)
    embed = absent("embed", NO_POOLING)
    classify = absent("classify", NO_POOLING)
    score = absent("score", NO_POOLING)
    reward = absent("reward", NO_POOLING)
    sleep = absent("sleep", STAYS)
    wake_up = absent("wake_up", STAYS)
    release_kv_cache_memory = absent("release_kv_cache_memory", STAYS)
    start_profile = absent("start_profile", TIMES)
    stop_profile = absent("stop_profile", TIMES)
    collective_rpc = absent("collective_rpc", "There are no workers beside this process.")
    apply_model = absent("apply_model", "Load the model with tilewise.models to look into it.")
    set_tokenizer = absent("set_tokenizer", "The tokenizer is the checkpoint's: make an LLM of another folder.")
    get_metrics = absent("get_metrics", "`counters` has the figures, and a server has /metrics.")

    def _step(self) -> list[TokenDelta]:
        """Compute one step. Raises RankDied, after which nothing more can be computed."""
        try:
            return self._core.step()
        except RankDied as error:
            raise RankDied(f"{str(error).removesuffix('.')}: close this LLM and make another one.") from error

    def close(self) -> None:
        self._core.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM(model={self.config.model!r})"

    def _sampling(
        self, given: SamplingParams | Sequence[SamplingParams] | None
    ) -> SamplingParams | Sequence[SamplingParams]:
        return self._defaults if given is None else given

    def _chat_requests(
        self, messages: Messages | Sequence[Messages], sampling: Any, options: ChatOptions, **foreign: Any
    ) -> list[Request]:
        ignored = Ignored()
        check_arguments(ignored, **foreign)
        several = [messages] if not messages or isinstance(messages[0], dict) else messages
        params = spread(self._sampling(sampling), len(several))
        requests = [
            self._build.conversation(item, one, options, ignored)  # type: ignore[arg-type]
            for item, one in zip(several, params, strict=True)
        ]
        LOG.take(ignored.reasons, "chat")
        return requests

    def _tick(self) -> None:
        """Log each engine's line if it is due; pictures are cut before all engines, and counted in the first one's."""
        media = self._prepare.cache.counts
        for number, stats in enumerate(self._stats):
            counters, load = self._engines[number].counters, self._engines[number].load
            if number == 0:
                counters = replace(counters, mm_cache_queries=media.queries, mm_cache_hits=media.hits)
            stats.tick(counters, load, time.monotonic())

    def _group(self, request: Request) -> AnswerGroup:
        return AnswerGroup(self._tokenizer, request, self._prepare.spec)

    def _run(self, requests: Sequence[Request], show_progress: Bar) -> list[RequestOutput]:
        return self._finish([self._group(request) for request in requests], show_progress)

    def _finish(self, groups: Sequence[AnswerGroup], show_progress: Bar) -> list[RequestOutput]:
        show = show_progress if callable(show_progress) else show_progress and len(groups) > 1
        with progress_bar("Answering", len(groups), show) as advance:
            for group, _ in self._drive(groups):
                if group.finished:
                    advance(1)
        return [group.output() for group in groups]

    def _stream(self, group: AnswerGroup) -> Iterator[tuple[str, RequestOutput]]:
        for _, text in self._drive([group]):
            if text or group.finished:
                yield text, group.output()

    def _drive(self, groups: Sequence[AnswerGroup]) -> Iterator[tuple[AnswerGroup, str]]:
        """Submit requests, and step until all have finished; whatever goes wrong, nothing is left in the engine."""
        owners = {request.id: group for group in groups for request in group.requests}
        try:
            for group in groups:
                for request in group.requests:
                    self._core.submit(request)
            while not all(group.finished for group in groups):
                deltas = self._step()
                self._tick()
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


def core_of(
    model: ModelInputs, part: Memory | None
) -> tuple[EngineCore | RemoteCore, Sequence[EngineCore | Supervisor], Resolved]:
    """Make an engine in this process, or several in processes of their own, each with its `part` of the memory.

    Return what is stepped, the engines, and the resolved options.
    """
    config, image_context_id = model.config, model.tokenizer.image_context_id
    if config.data_parallel_size > 1:
        from tilewise.remote.core import RemoteCore
        from tilewise.remote.wire import Launch

        end_ids = model.spec.end_ids
        remote = RemoteCore(Launch(config, model.checkpoint, model.draft, image_context_id, end_ids, part=part))
        return remote, remote.replicas.engines, remote.resolved
    os.environ.update(short_waits(os.environ))
    # Imported here, not above: torch takes longer to load than all that a caller can get wrong takes to check.
    from tilewise.runner.build import build_runner

    runner, resolved = build_runner(config, model.checkpoint, image_context_id, model.draft)
    core = EngineCore(runner, resolved.limits, resolved.overlap, seed=config.seed)
    return core, [core], resolved


def _with_ids(prompts: Any, ids: Any) -> list[Any]:
    """Return the prompts for the older form, in which ids came beside their texts."""
    several = [ids] if len(ids) and not hasattr(ids[0], "__len__") else list(ids)
    texts = [None] * len(several) if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)
    if len(texts) != len(several):
        raise InvalidRequest(f"prompt_token_ids has {len(several)} entries for {len(texts)} prompts.")
    return [{"prompt_token_ids": one, "prompt": text} for one, text in zip(several, texts, strict=True)]


def check_model(model: object) -> str:
    """Return the model's name. Raises InvalidConfig for None, which would be the default: a variable was empty."""
    if model is None:
        raise InvalidConfig("model must be a text, got None: give 'demo', a folder or a hub id.")
    return model  # type: ignore[return-value]


def log_interval() -> float:
    text = os.environ.get("VLLM_LOG_STATS_INTERVAL", "10")
    try:
        return float(text)
    except ValueError:
        raise InvalidConfig(f"VLLM_LOG_STATS_INTERVAL must be a number of seconds, found {text!r}.") from None


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
    if os.environ.get("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "1").lower() in ("0", "false"):
        access = replace(access, max_redirects=0)
    limits = ImageLimits.of(config)
    frames = FrameChoice(config.num_frames, config.fps)
    # Without a cache nothing of a request is held on to when it ends, its files included.
    handles = MediaByUuid(media.handle_bytes if config.mm_processor_cache_gb != 0 else 0)
    counts = config.limit_mm_per_prompt or {}
    turned = config.exif_orientation
    return MediaReader(access, limits, counts, frames, handles, exif_orientation=turned, budget=MediaBudget(media))
