"""AnswerLoop: an engine that is stepped by its caller until answers are whole; and how such an engine is made."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tilewise.console import Bar, progress_bar
from tilewise.engine.core import EngineCore
from tilewise.engine.counters import Counters, StatsLog
from tilewise.engine.sequence import SequenceFailure
from tilewise.errors import RankDied
from tilewise.host import short_waits
from tilewise.inputs.prepare import Preparer
from tilewise.outputs.group import AnswerGroup
from tilewise.plan import Resolved
from tilewise.remote.process import build
from tilewise.remote.wire import Launch
from tilewise.types import Request, RequestOutput

if TYPE_CHECKING:
    from tilewise.remote.core import RemoteCore
    from tilewise.remote.supervisor import Supervisor


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
    """A loop over an engine's steps, which turns tokens into answers. One thread drives it."""

    def __init__(
        self,
        core: EngineCore | RemoteCore,
        engines: Sequence[EngineCore | Supervisor],
        inputs: Preparer,
        stats: Sequence[StatsLog],
    ) -> None:
        """Step `core`, which is one engine or stands for all `engines`; `stats` has a log line of each, or nothing."""
        self._core, self._engines, self._inputs, self._stats = core, engines, inputs, stats

    @property
    def counters(self) -> Counters:
        """A copy of what was counted since the start, by all engines and while pictures were cut."""
        return self._with_media(self._core.counters)

    def group(self, request: Request) -> AnswerGroup:
        return AnswerGroup(self._inputs.tokenizer, request, self._inputs.spec)

    def submit(self, group: AnswerGroup) -> None:
        for request in group.requests:
            self._core.submit(request)

    def abort(self, group: AnswerGroup) -> None:
        """Take a group's requests out of the engine; those that have ended already are unknown to it."""
        for request in group.requests:
            self._core.abort(request.id)

    def advance(self, owners: Mapping[str, AnswerGroup]) -> Iterator[tuple[AnswerGroup, str]]:
        """Compute one step; yield each group of answers that got something new, with its new text.

        `owners` has the group of each request. Raises RankDied, after which nothing more can be computed.
        """
        try:
            deltas = self._core.step()
        except RankDied as error:
            raise RankDied(f"{str(error).removesuffix('.')}: close this LLM and make another one.") from error
        self._log_stats()
        for delta in deltas:
            group = owners[delta.request_id]
            if isinstance(delta, SequenceFailure):
                group.fail(delta)
                yield group, ""
                continue
            piece = group.take(delta)
            if piece is None:
                continue
            if piece.engine_goes_on:
                self._core.abort(delta.request_id)
            yield group, piece.text

    def drive(self, groups: Sequence[AnswerGroup]) -> Iterator[tuple[AnswerGroup, str]]:
        """Submit requests, and step until all have finished; whatever goes wrong, nothing is left in the engine."""
        owners = {request.id: group for group in groups for request in group.requests}
        try:
            for group in groups:
                self.submit(group)
            while not all(group.finished for group in groups):
                yield from self.advance(owners)
        finally:
            for group in groups:
                self.abort(group)

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
