"""LLM: the engine in the caller's process. Method names, argument names and results are vLLM's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from tilewise.config import EngineConfig
from tilewise.console import Bar, progress_bar
from tilewise.engine.counters import Counters, StatsLog
from tilewise.entrypoints.answer_loop import AnswerLoop, make_core
from tilewise.entrypoints.beam_search import BeamSearch, BeamSearchOutput, BeamSearchParams
from tilewise.entrypoints.setup import NO_POOLING, SUPPORTED_TASKS, Entrypoint, absent, call_of, check_model
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig, InvalidRequest
from tilewise.foreign.keywords import named_keywords
from tilewise.foreign.modules import finder_of
from tilewise.inputs.prompts import PromptInput
from tilewise.inputs.request_builder import ChatOptions, Messages, spread
from tilewise.outputs.group import AnswerGroup
from tilewise.sampling_params import SamplingParams
from tilewise.types import Request, RequestOutput

if TYPE_CHECKING:
    from tilewise.entrypoints.llm_engine import LLMEngine
else:
    __getattr__ = finder_of(__name__, {}, ImportError)


class LLM(Entrypoint):
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
        environment = Environment.here()
        config = EngineConfig.of(environment, model=check_model(model), **options).for_whole_answers()
        logged = 0 if config.disable_log_stats else config.data_parallel_size
        stats = [StatsLog(environment.log_interval, time.monotonic(), number) for number in range(logged)]
        launch = self._read(config)
        self._defaults = self.get_default_sampling_params()
        self._core, engines, resolved = make_core(launch)
        self._prepare_for(resolved)
        self._loop = AnswerLoop(self._core, engines, self._prepare, stats)
        self._queued: list[AnswerGroup] = []

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
        foreign = {
            "lora_request": lora_request,
            "tokenization_kwargs": tokenization_kwargs,
            "prompt_adapter_request": prompt_adapter_request,
            "guided_options_request": guided_options_request,
        }
        with call_of("generate", **foreign) as ignored:
            if prompt_token_ids is not None:
                prompts = _with_ids(prompts, prompt_token_ids)
            requests = self._build.prompts(prompts, self._sampling(sampling_params), mm_processor_kwargs, ignored)
        return self._loop.run(self._build.prioritised(requests, priority), use_tqdm)

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
        return self._loop.run(self._build.prioritised(requests, priority), use_tqdm)

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
        return self._loop.stream(request)

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
        spec, longest = self._prepare.spec, self.resolved.limits.longest_sequence
        search = BeamSearch(params, self._model.tokenizer, spec.end_ids, longest)
        with call_of("beam_search", lora_request=lora_request) as ignored:
            requests = self._build.prompts(prompts, params.prompt_sampling, None, ignored)
        size = concurrency_limit or max(1, len(requests))
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        with progress_bar("Searching", params.max_tokens * len(parts), use_tqdm) as advance:
            ask = partial(self._loop.run, show_progress=False)
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
        with call_of("enqueue") as ignored:
            requests = self._build.prompts(prompts, self._sampling(sampling_params), mm_processor_kwargs, ignored)
        self._queued += [self._loop.group(request) for request in self._build.prioritised(requests, priority)]
        return [request.id for request in requests]

    @named_keywords()
    def wait_for_completion(self, *, use_tqdm: Bar = True) -> list[RequestOutput]:
        """Return the answers to all prompts that were enqueued."""
        groups, self._queued = self._queued, []
        return self._loop.finish(groups, use_tqdm)

    def answer_each(self, requests: Sequence[Request]) -> Iterator[tuple[int, RequestOutput]]:
        """Yield answers as they become whole, each with the place of its request; `inputs` makes requests."""
        groups = [self._loop.group(request) for request in requests]
        places = {id(group): place for place, group in enumerate(groups)}
        for group, _ in self._loop.drive(groups):
            if group.finished:
                yield places[id(group)], group.output()

    @property
    def counters(self) -> Counters:
        """A copy of what was counted since the start."""
        return self._loop.counters

    def get_default_sampling_params(self) -> SamplingParams:
        """Return what the checkpoint's generation_config.json says, or what `generation_config` and
        `override_generation_config` of this LLM say instead; a new one each time."""
        source, override = self._generation
        return SamplingParams(**self._model.default_sampling(source, override))

    @named_keywords()
    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget all prefixes that were computed; return True if none is left."""
        foreign = {"reset_running_requests": reset_running_requests, "reset_connector": reset_connector}
        with call_of("reset_prefix_cache", **foreign):
            return self._loop.reset("prefix")

    def reset_mm_cache(self) -> None:
        """Forget pictures that have been cut."""
        self._prepare.cache.clear()

    @cached_property
    def llm_engine(self) -> LLMEngine:
        """This engine in a form that the caller steps."""
        from tilewise.entrypoints.llm_engine import LLMEngine

        return LLMEngine(self)

    @property
    def supported_tasks(self) -> list[str]:
        return list(SUPPORTED_TASKS)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return SUPPORTED_TASKS

    def get_world_size(self, include_dp: bool = True) -> int:
        return self.config.layout.devices if include_dp else self.config.layout.ranks

    embed = absent("embed", NO_POOLING)
    classify = absent("classify", NO_POOLING)
    score = absent("score", NO_POOLING)
    reward = absent("reward", NO_POOLING)
    collective_rpc = absent("collective_rpc", "There are no workers beside this process.")
    apply_model = absent("apply_model", "Load the model with tilewise.models to look into it.")
    set_tokenizer = absent("set_tokenizer", "The tokenizer is the checkpoint's: make an LLM of another folder.")
    get_metrics = absent("get_metrics", "`counters` has the figures, and a server has /metrics.")

    def close(self) -> None:
        self._core.close()

    def __repr__(self) -> str:
        return f"LLM(model={self.config.model!r})"

    def _sampling(
        self, given: SamplingParams | Sequence[SamplingParams] | None
    ) -> SamplingParams | Sequence[SamplingParams]:
        return self._defaults if given is None else given

    def _chat_requests(
        self, messages: Messages | Sequence[Messages], sampling: Any, options: ChatOptions, **foreign: Any
    ) -> list[Request]:
        several = [messages] if not messages or isinstance(messages[0], dict) else messages
        with call_of("chat", **foreign) as ignored:
            params = spread(self._sampling(sampling), len(several))
            return [
                self._build.conversation(item, one, options, ignored)  # type: ignore[arg-type]
                for item, one in zip(several, params, strict=True)
            ]


def _with_ids(prompts: Any, ids: Any) -> list[Any]:
    """Return the prompts for the older form, in which ids came beside their texts."""
    several = [ids] if len(ids) and not hasattr(ids[0], "__len__") else list(ids)
    texts = [None] * len(several) if prompts is None else [prompts] if isinstance(prompts, str) else list(prompts)
    if len(texts) != len(several):
        raise InvalidRequest(f"prompt_token_ids has {len(several)} entries for {len(texts)} prompts.")
    return [{"prompt_token_ids": one, "prompt": text} for one, text in zip(several, texts, strict=True)]
