"""Streams: answers that grow together in one engine, and pictures that come in beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tilewise import LLM, SamplingParams
from tilewise.ignored import Ignored
from tilewise.outputs.group import AnswerGroup

WARM = 4
"""Tokens of each stream that do not count."""
Prompt = dict[str, Any]


@dataclass
class Seen:
    """When tokens came, of each stream, in seconds on the clock of time.perf_counter()."""

    tokens: list[list[float]]
    first_tokens: list[float] = field(default_factory=list)
    """Seconds to the first token of each picture, without the host's work on it."""

    @property
    def _steady(self) -> list[list[float]]:
        """From where all streams have begun until one ends."""
        start, stop = max(times[WARM - 1] for times in self.tokens), min(times[-1] for times in self.tokens)
        return [[moment for moment in times if start <= moment <= stop] for times in self.tokens]

    @property
    def rate(self) -> float:
        """Tokens a second of all streams."""
        steady = self._steady
        start, stop = min(times[0] for times in steady), max(times[-1] for times in steady)
        return sum(sum(moment > start for moment in times) for times in steady) / (stop - start)

    @property
    def between(self) -> list[float]:
        """Seconds from a token to the next one of the same stream."""
        return [after - before for times in self._steady for before, after in pairwise(times)]


class Streams:
    """Does what `LLM.generate` does, with a look at the clock at each token."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._groups: dict[str, AnswerGroup] = {}

    def run(
        self,
        prompts: Sequence[Prompt],
        tokens: int,
        pictures: Sequence[Prompt] = (),
        steady: tuple[Callable[[], None], Callable[[], None]] | None = None,
    ) -> Seen:
        """Answers of `tokens` behind the warm ones. When all streams are warm, a picture is asked about, and the next
        one when it is answered; they have been cut before, as servers do beside their steps. `steady` is called from
        when all streams are warm, and from shortly before the first one ends.
        """
        waiting = [self._group(picture, 1) for picture in pictures]
        names = [self._submitted(self._group(prompt, WARM + tokens)) for prompt in prompts]
        streams: dict[str, list[float]] = {name: [] for name in names}
        seen, asked = Seen(list(streams.values())), dict[str, float]()
        try:
            while not all(self._groups[name].finished for name in names):
                for delta in self._llm._core.step():
                    now = time.perf_counter()
                    self._groups[delta.request_id].take(delta)
                    if delta.request_id in streams:
                        streams[delta.request_id].append(now)
                    elif delta.request_id in asked:
                        seen.first_tokens.append(now - asked.pop(delta.request_id))
                fewest, last = min(map(len, seen.tokens)), max(map(len, seen.tokens))
                if fewest >= WARM and waiting and not asked:
                    asked[self._submitted(waiting.pop(0))] = time.perf_counter()
                if steady and fewest >= WARM:
                    steady[0]()
                if steady and last >= WARM + tokens - 1:
                    steady[1]()
        finally:
            self._end()
        return seen

    def _group(self, prompt: Prompt, tokens: int) -> AnswerGroup:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        (request,) = self._llm._build.prompts([prompt], params, None, Ignored())
        return self._llm._loop.group(request)

    def _submitted(self, group: AnswerGroup) -> str:
        (request,) = group.requests
        self._groups[request.id] = group
        self._llm._core.submit(request)
        return request.id

    def _end(self) -> None:
        for name in self._groups:
            self._llm._core.abort(name)
        self._groups.clear()
        while self._llm._core.has_unfinished:
            self._llm._core.step()
