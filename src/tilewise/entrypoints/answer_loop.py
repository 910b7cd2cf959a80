"""AnswerLoop: an engine that is stepped by its callers until answers are whole; and how such an engine is made."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from tilewise.console import Bar, progress_bar
from tilewise.engine.core import EngineCore
from tilewise.engine.counters import Counters, StatsLog
from tilewise.errors import RankDied, TilewiseError
from tilewise.host import short_waits
from tilewise.inputs.prepare import Preparer
from tilewise.outputs.group import AnswerGroup
from tilewise.plan import Resolved
from tilewise.remote.process import build
from tilewise.remote.wire import Launch, RequestRefused
from tilewise.types import Request, RequestOutput, SequenceDelta, SequenceFailure

if TYPE_CHECKING:
    from tilewise.remote.core import RemoteCore
    from tilewise.remote.supervisor import Supervisor

Delta = SequenceDelta | SequenceFailure | RequestRefused
News = deque[Delta]
"""Tokens, failures and refusals that steps have brought for one caller, who has yet to look at them."""


def make_core(launch: Launch) -> tuple[EngineCore | RemoteCore, Sequence[EngineCore | Supervisor], Resolved]:
    """Make an engine in this process, or several in processes of their own.

    Return what is stepped, the engines, and the resolved options.
    """
    if launch.config.data_parallel_size > 1:
        from tilewise.remote.core import RemoteCore

        remote = RemoteCore(launch)
        return remote, remote.replicas.engines, remote.resolved
    os.environ.update(short_waits(os.environ))
    core, ready = build(launch)
    return core, [core], ready.resolved


class AnswerLoop:
    """A loop over an engine's steps, which turns tokens into answers.

    Several threads may wait for answers. One that finds nobody at it computes the next step for all, so that their
    requests are computed together; the others wait for their part of it.
    """

    def __init__(
        self,
        core: EngineCore | RemoteCore,
        engines: Sequence[EngineCore | Supervisor],
        inputs: Preparer,
        stats: Sequence[StatsLog],
    ) -> None:
        """Step `core`, which is one engine or stands for all `engines`; `stats` has a log line of each, or nothing."""
        self._core, self._engines, self._inputs, self._stats = core, engines, inputs, stats
        self._turn = threading.Condition()
        self._stepping = False
        self._later: list[Callable[[], None]] = []
        """Calls of the engine that wait for the end of the step that is being computed."""
        self._news: dict[str, News] = {}
        """The news of its caller, for each request."""

    @property
    def counters(self) -> Counters:
        """A copy of what was counted since the start, by all engines and while pictures were cut."""
        return self._with_media(self._core.counters)

    def group(self, request: Request) -> AnswerGroup:
        return AnswerGroup(self._inputs.tokenizer, request, self._inputs.spec)

    def reset(self, cache: Literal["prefix", "tiles"]) -> bool:
        """Empty a cache between two steps; return True if all of it is empty now."""
        with self._turn:
            self._turn.wait_for(lambda: not self._stepping)
            return self._core.reset(cache)

    def submit(self, request: Request, news: News) -> None:
        """Hand a request to the engine. Its tokens are appended to `news`, and so is the error if it is refused."""

        def submit() -> None:
            try:
                self._core.submit(request)
            except TilewiseError as error:
                news.append(RequestRefused(request.id, error))

        self._news[request.id] = news
        self._between_steps(submit)

    def abort(self, request_id: str) -> None:
        """Take a request out of the engine; one that has ended already is unknown to it."""
        self._news.pop(request_id, None)
        self._between_steps(lambda: self._core.abort(request_id))

    def _between_steps(self, call: Callable[[], None]) -> None:
        """Make a call now, or have whoever computes a step make it behind that."""
        with self._turn:
            if self._stepping:
                self._later.append(call)
            else:
                call()

    def step(self, news: News) -> None:
        """Compute one step for all, or wait until others' steps have brought `news`.

        Raises RankDied, after which nothing more can be computed.
        """
        with self._turn:
            self._turn.wait_for(lambda: news or not self._stepping)
            if news:
                return
            self._stepping = True
        deltas: Sequence[Delta] = ()
        try:
            deltas = self._core.step()
            self._log_stats()
        except RankDied as error:
            raise RankDied(f"{str(error).removesuffix('.')}: close this LLM and make another one.") from error
        finally:
            self._end_step(deltas)

    def _end_step(self, deltas: Sequence[Delta]) -> None:
        with self._turn:
            self._stepping = False
            for delta in deltas:
                if (news := self._news.get(delta.request_id)) is not None:  # else its caller has just aborted it
                    news.append(delta)
            later, self._later = self._later, []
            for call in later:
                call()
            self._turn.notify_all()

    def drive(self, groups: Sequence[AnswerGroup]) -> Iterator[tuple[AnswerGroup, str]]:
        """Submit requests, and step until all have finished; whatever goes wrong, nothing is left in the engine."""
        answers = RunningAnswers(self)
        try:
            for group in groups:
                answers.submit(group)
            while not all(group.finished for group in groups):
                yield from answers.advance()
        finally:
            for group in groups:
                answers.abort(group)

    def finish(self, groups: Sequence[AnswerGroup], show_progress: Bar) -> list[RequestOutput]:
        show = show_progress if callable(show_progress) else show_progress and len(groups) > 1
        with progress_bar("Answering", len(groups), show) as moved:
            for group, _ in self.drive(groups):
                if group.finished:
                    moved(1)
        return [group.output() for group in groups]

    def run(self, requests: Sequence[Request], show_progress: Bar) -> list[RequestOutput]:
        return self.finish([self.group(request) for request in requests], show_progress)

    def stream(self, request: Request) -> Iterator[tuple[str, RequestOutput]]:
        """Yield each new piece of a request's text, and the whole answer so far."""
        for group, text in self.drive([self.group(request)]):
            if text or group.finished:
                yield text, group.output()

    def _log_stats(self) -> None:
        """Log each engine's line if it is due; pictures are cut before all engines, and counted in the first one's."""
        for number, (stats, engine) in enumerate(zip(self._stats, self._engines, strict=False)):
            counters = engine.counters if number else self._with_media(engine.counters)
            stats.tick(counters, engine.load, time.monotonic())

    def _with_media(self, counters: Counters) -> Counters:
        media = self._inputs.media_counts
        return replace(counters, mm_cache_queries=media.queries, mm_cache_hits=media.hits)


class RunningAnswers:
    """The groups of answers that one thread waits for."""

    def __init__(self, loop: AnswerLoop) -> None:
        self._loop = loop
        self._owners: dict[str, AnswerGroup] = {}
        self._news: News = deque()

    def submit(self, group: AnswerGroup) -> None:
        for request in group.requests:
            self._owners[request.id] = group
            self._loop.submit(request, self._news)

    def abort(self, group: AnswerGroup) -> None:
        """Take a group's requests out of the engine, or forget those that have ended."""
        for request in group.requests:
            if self._owners.pop(request.id, None) is not None:
                self._loop.abort(request.id)

    def waits_for(self, group: AnswerGroup) -> bool:
        """Return whether the group was submitted and neither aborted nor refused since."""
        return any(owner is group for owner in self._owners.values())

    def advance(self) -> Iterator[tuple[AnswerGroup, str]]:
        """Take what has come, or compute a step; yield each group that got something new, with its new text.

        Raises what a request was refused for, whose group is waited for no more, and RankDied.
        """
        self._loop.step(self._news)
        while self._news:
            delta = self._news.popleft()
            if (group := self._owners.get(delta.request_id)) is None:
                continue  # it was aborted before it was looked at
            if isinstance(delta, RequestRefused):
                self.abort(group)
                raise delta.error
            if isinstance(delta, SequenceFailure):
                group.fail(delta)
                yield group, ""
            elif (piece := group.take(delta)) is not None:
                if piece.engine_goes_on:
                    self._loop.abort(delta.request_id)
                yield group, piece.text
