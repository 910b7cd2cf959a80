"""LLMEngine: an engine that the caller's program steps by itself. Names and results are vLLM's."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from tilewise.engine.arg_utils import EngineArgs
from tilewise.entrypoints.answer_loop import RunningAnswers
from tilewise.entrypoints.llm import LLM
from tilewise.entrypoints.setup import call_of
from tilewise.errors import InvalidRequest, TilewiseError
from tilewise.foreign.keywords import named_keywords
from tilewise.ignored import LOG
from tilewise.inputs.chat_tokenizer import ChatTokenizer
from tilewise.inputs.prompts import PromptInput
from tilewise.inputs.request_builder import FOREIGN_ARGUMENTS
from tilewise.outputs.group import AnswerGroup, ResultStream
from tilewise.sampling_params import SamplingParams
from tilewise.types import RequestOutput


class LLMEngine:
    """An engine that its caller steps: add requests, and step until none is unfinished."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        """The LLM whose engine this steps."""
        self._answers = RunningAnswers(llm._loop)
        self._running: dict[str, tuple[AnswerGroup, ResultStream]] = {}
        self._changed: set[int] = set()
        """Ids of groups that have got something that no step has returned yet."""

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **of_vllm: Any) -> LLMEngine:
        """Make an engine. Further keywords, about vLLM's own parts, are named as having no effect."""
        LOG.take(dict.fromkeys(of_vllm, "it is about parts that vLLM alone has"), "LLMEngine")
        return cls(LLM.from_engine_args(engine_args))

    @named_keywords(FOREIGN_ARGUMENTS)
    def add_request(
        self,
        request_id: str,
        prompt: PromptInput,
        params: SamplingParams,
        *,
        priority: int = 0,
        mm_processor_kwargs: dict[str, Any] | None = None,
        **foreign: Any,
    ) -> str:
        """Prepare one raw prompt and hand it to the engine; return its name. Raises InvalidRequest."""
        with call_of("LLMEngine", **foreign) as ignored:
            if request_id in self._running:
                raise InvalidRequest(f"request_id {request_id!r:.80} is running already: give another one.")
            requests = self.llm._build.prompts(prompt, params, mm_processor_kwargs, ignored)
        if len(requests) != 1:
            raise InvalidRequest(f"add_request takes one prompt, got {len(requests)}: call it once for each.")
        (request,) = self.llm._build.prioritised(requests, priority)
        group = self.llm._loop.group(request)
        self._answers.submit(group)
        self._running[request_id] = group, ResultStream(group, request_id)
        return request_id

    def step(self) -> list[RequestOutput]:
        """Compute one step; return a result of each request that has something new, as its `output_kind` says.

        Raises what a request was refused for; that one has ended, and what is new of others comes with the next step.
        """
        try:
            for group, _ in self._answers.advance() if self._running else ():
                self._changed.add(id(group))
        except TilewiseError:
            self._running = {
                name: running for name, running in self._running.items() if self._answers.waits_for(running[0])
            }
            raise
        results = [results.next() for group, results in self._running.values() if id(group) in self._changed]
        self._changed.clear()
        self.abort_request([name for name, (group, _) in self._running.items() if group.finished])
        return [result for result in results if result is not None]

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """Take requests out of the engine; unknown ones have ended already."""
        for name in [request_ids] if isinstance(request_ids, str) else list(request_ids):
            if (found := self._running.pop(name, None)) is not None:
                self._answers.abort(found[0])

    @property
    def model_config(self) -> SimpleNamespace:
        return self.llm.model_config

    def get_model_config(self) -> SimpleNamespace:
        return self.llm.model_config

    @property
    def vllm_config(self) -> SimpleNamespace:
        """vLLM's config with `model_config` alone; everything else is in `llm.config` and `llm.resolved`."""
        return SimpleNamespace(model_config=self.llm.model_config)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return self.llm.get_supported_tasks()

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def get_num_unfinished_requests(self) -> int:
        return len(self._running)

    def get_tokenizer(self) -> ChatTokenizer:
        return self.llm.get_tokenizer()
