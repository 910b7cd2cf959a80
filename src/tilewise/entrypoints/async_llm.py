"""AsyncLLM: an engine in a process of its own, for programs with an event loop. Names and results are vLLM's.

The engine's supervisor, or that of its replicas, runs in an event loop of its own, in a thread. So an engine is made
and ended by ordinary calls, is restarted while no loop of the caller runs, and answers any loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from tilewise.config import EngineConfig
from tilewise.engine.counters import Counters
from tilewise.entrypoints.setup import SUPPORTED_TASKS, Entrypoint, absent, call_of, check_model
from tilewise.environment import Environment
from tilewise.errors import Cancelled, EngineDead, InvalidRequest, TilewiseError
from tilewise.foreign.keywords import named_keywords
from tilewise.ignored import LOG, Ignored
from tilewise.inputs.chat_tokenizer import ChatTokenizer
from tilewise.inputs.prompts import PromptInput
from tilewise.inputs.request_builder import FOREIGN_ARGUMENTS, ChatOptions, Messages
from tilewise.outputs.group import AnswerGroup, ResultStream
from tilewise.remote.core import LoopThread
from tilewise.remote.engine import EngineProcess, Stream
from tilewise.remote.replicas import replicas_of
from tilewise.sampling_params import SamplingParams
from tilewise.types import Request, RequestOutput, SequenceDelta, SequenceFailure

logger = logging.getLogger("tilewise")
_NO_ADAPTERS = "An adapter is merged into the model as that is loaded: adapter=FOLDER in the engine's arguments."


class AsyncLLM(Entrypoint):
    """An engine that answers prompts about pictures and videos, each as a stream of results.

    It is made by options as LLM is, or by `from_engine_args`; both return when the model is loaded. An engine that dies
    ends its requests with EngineDead and is started again, three times in five minutes at most.

    >>> engine = AsyncLLM("demo")
    >>> async for result in engine.generate("Hello", SamplingParams(), "request-1"):  # doctest: +SKIP
    ...     print(result.outputs[0].text)
    """

    def __init__(self, model: str = "demo", **options: Any) -> None:
        process = EngineProcess()  # first, as its libraries take longer to load than all that is read here
        self._loop = LoopThread("tilewise-async-llm")
        try:
            defaults = [name for name in ("generation_config", "override_generation_config") if options.pop(name, None)]
            LOG.take(dict.fromkeys(defaults, "every request says how its tokens are chosen"), "AsyncLLM")
            launch = self._read(EngineConfig.of(Environment.here(), model=check_model(model), **options))
            self._engine = replicas_of(launch)
            ready = self._loop.start(self._engine, process)
        except BaseException:
            process.kill()
            self._loop.end()
            raise
        self._prepare_for(ready.resolved)
        self._running: dict[str, Stream[SequenceDelta]] = {}

    @named_keywords(FOREIGN_ARGUMENTS)
    def generate(
        self,
        prompt: PromptInput,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        priority: int = 0,
        mm_processor_kwargs: dict[str, Any] | None = None,
        **foreign: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Continue one raw prompt, in any form that LLM.generate takes.

        Results are whole answers so far, what is new, or the last one, as `sampling_params.output_kind` says. Leaving
        the iterator takes the request out of the engine. Raises InvalidRequest, and EngineDead if the engine ends.
        `prompt_text` is what results show for ids. Other keywords of vLLM's are named or refused.
        """

        def prepare(ignored: Ignored) -> Request:
            requests = self._build.prompts(prompt, sampling_params, mm_processor_kwargs, ignored)
            if len(requests) != 1:
                raise InvalidRequest(f"generate takes one prompt, got {len(requests)}: call it once for each.")
            (request,) = self._build.prioritised(requests, priority)
            return request.with_(prompt=request.prompt or prompt_text)

        return self._answer(prepare, sampling_params, request_id, foreign)

    @named_keywords(FOREIGN_ARGUMENTS)
    def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        chat_template: None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        **foreign: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer one conversation; arguments are those of LLM.chat, results those of `generate`."""
        options = ChatOptions(
            chat_template,
            chat_template_kwargs,
            add_generation_prompt,
            continue_final_message,
            tools,
            mm_processor_kwargs,
        )

        def prepare(ignored: Ignored) -> Request:
            request = self._build.conversation(messages, sampling_params, options, ignored)
            return self._build.prioritised([request], priority)[0]

        return self._answer(prepare, sampling_params, request_id, foreign)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests: the last result of each has `finish_reason` "abort". Unknown ones have ended already."""
        for name in [request_id] if isinstance(request_id, str) else list(request_id):
            if stream := self._running.get(name):
                stream.fail(Cancelled(f"Request {name} was aborted."))

    async def check_health(self) -> None:
        """Raise EngineDead unless requests are taken."""
        self._engine.check()

    @property
    def is_running(self) -> bool:
        """True while requests are taken, now or when the engine is back."""
        return self._engine.state in ("ready", "restarting")

    @property
    def is_stopped(self) -> bool:
        return not self.is_running

    @property
    def errored(self) -> bool:
        """True once the engine has died so often that it was given up: nothing will be answered any more."""
        return self._engine.state == "failed"

    @property
    def dead_error(self) -> EngineDead:
        return EngineDead(f"The engine is {self._engine.state}.")

    @property
    def tokenizer(self) -> ChatTokenizer:
        return self._model.chat_tokenizer

    @property
    def counters(self) -> Counters:
        """A copy of what was counted since the engine started."""
        return self._engine.counters.copy()

    def get_num_unfinished_requests(self) -> int:
        return len(self._running)

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget all prefixes that were computed; return True if none is left."""
        foreign = {"reset_running_requests": reset_running_requests, "reset_connector": reset_connector}
        with call_of("reset_prefix_cache", **foreign):
            return await asyncio.wrap_future(self._loop.begin(self._engine.reset("prefix")))

    async def get_model_config(self) -> SimpleNamespace:
        return self.model_config

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return SUPPORTED_TASKS

    async def is_tracing_enabled(self) -> bool:
        """Return False: only a server traces."""
        return False

    async def is_sleeping(self) -> bool:
        return False

    async def is_paused(self) -> bool:
        return False

    async def list_loras(self) -> set[int]:
        return set()

    async def do_log_stats(self) -> None:
        """Log what was counted since the start."""
        counters = self.counters
        logger.info(
            "Prompt tokens: %d, generation tokens: %d, requests running: %d",
            counters.prompt_tokens,
            counters.generation_tokens,
            len(self._running),
        )

    pause_generation = absent("pause_generation", "Abort what runs, and send nothing meanwhile.")
    resume_generation = absent("resume_generation", "Nothing was paused: send requests.")
    add_lora = absent("add_lora", _NO_ADAPTERS)
    remove_lora = absent("remove_lora", _NO_ADAPTERS)
    pin_lora = absent("pin_lora", _NO_ADAPTERS)
    collective_rpc = absent("collective_rpc", "There is one engine's process, and it takes requests alone.")
    beam_search = absent("beam_search", "Call LLM.beam_search.")
    add_request = absent("add_request", "Iterate over `generate`, or step an LLMEngine.")
    update_weights = absent("update_weights", "Make another engine of a folder with the new weights.")

    async def reset_mm_cache(self) -> None:
        """Forget pictures that have been cut."""
        self._prepare.cache.clear()

    def shutdown(self, timeout: float | None = None) -> None:
        """End the engine; requests that are left end with EngineDead. A second call does nothing."""
        self._loop.close(self._engine)

    close = shutdown

    async def _answer(
        self,
        prepare: Callable[[Ignored], Request],
        sampling: SamplingParams,
        request_id: str,
        foreign: Mapping[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        with call_of("AsyncLLM", **foreign) as ignored:
            if not isinstance(sampling, SamplingParams):
                raise InvalidRequest(f"sampling_params must be SamplingParams, got {type(sampling).__name__}.")
            if self._loop.ended:
                raise EngineDead("The engine was shut down: make another AsyncLLM.")
            self._engine.check()
            request = await asyncio.to_thread(prepare, ignored)
        group = AnswerGroup(self._model.tokenizer, request, self._prepare.spec)
        results = ResultStream(group, request_id)
        async with self._open(group.requests) as stream:
            if request_id in self._running:
                raise InvalidRequest(f"request_id {request_id!r:.80} is running already: give another one.")
            self._running[request_id] = stream
            try:
                async for deltas in stream:
                    for delta in deltas:
                        if isinstance(delta, SequenceFailure):
                            group.fail(delta)
                            continue
                        piece = group.take(delta)
                        if piece is not None and piece.engine_goes_on:
                            stream.abort(delta.request_id)
                    result = results.next()
                    if result is not None:
                        yield result
                    if group.finished:
                        return
            except Cancelled:
                yield results.aborted()
            finally:
                del self._running[request_id]

    def _open(self, requests: Sequence[Request]) -> Stream[SequenceDelta]:
        """Submit requests; what their engine says is passed on from its loop to a stream of the caller's."""

        def leave(request_ids: Sequence[str], unfinished: tuple[str, ...]) -> None:
            with suppress(RuntimeError):  # the engine was shut down meanwhile, with all that it had
                self._loop.call(self._engine.forget, request_ids, unfinished)

        stream: Stream[SequenceDelta] = Stream([request.id for request in requests], leave)
        self._loop.submit(self._engine, requests, _ToOtherLoop(stream, asyncio.get_running_loop()))
        return stream


class _ToOtherLoop:
    """A sink that passes what it takes on to a stream of another event loop."""

    def __init__(self, stream: Stream[SequenceDelta], loop: asyncio.AbstractEventLoop) -> None:
        self._stream, self._loop = stream, loop

    def put(self, delta: SequenceDelta) -> None:
        self._pass_on(self._stream.put, delta)

    def fail(self, error: TilewiseError) -> None:
        self._pass_on(self._stream.fail, error)

    def _pass_on(self, take: Callable[[Any], None], what: SequenceDelta | TilewiseError) -> None:
        with suppress(RuntimeError):  # the caller's loop has been closed, so nobody listens there
            self._loop.call_soon_threadsafe(take, what)


AsyncLLMEngine = AsyncLLM
