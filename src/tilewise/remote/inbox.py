"""Inbox: what came for the engine while it was at work, in order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from tilewise.errors import TilewiseError
from tilewise.remote.pipe import Pipe
from tilewise.remote.wire import Abort, Close, Refused, Submit, ToEngine

if TYPE_CHECKING:
    from tilewise.inputs.grammar import Grammars


class Inbox:
    """Read by one thread, which leaves to another what takes long: compiling the grammars of structured answers.

    A request and its abort keep their order: an abort that overtakes its request while that is being compiled waits
    in the same line.
    """

    def __init__(self, pipe: Pipe, folder: Path, end_ids: frozenset[int]) -> None:
        """`folder` has the tokenizer, which is read when the first grammar comes."""
        self._pipe = pipe
        self._folder = folder
        self._end_ids = end_ids
        self._messages: SimpleQueue[ToEngine | Refused] = SimpleQueue()
        self._compiling: dict[str, None] = {}
        self._compiler = ThreadPoolExecutor(1, "tilewise-grammars")
        Thread(target=self._read, name="tilewise-inbox", daemon=True).start()

    def take(self, seconds: float) -> list[ToEngine | Refused]:
        """All there is; where there is nothing, one is waited for so long."""
        found: list[ToEngine | Refused] = []
        while True:
            try:
                found.append(self._messages.get(timeout=0.0 if found else seconds))
            except Empty:
                return found

    def _read(self) -> None:
        try:
            while True:
                self._sort(self._pipe.receive())
        except (EOFError, OSError):
            self._messages.put(Close())

    def _sort(self, message: ToEngine) -> None:
        if isinstance(message, Submit) and message.request.sampling.structured_outputs is not None:
            self._compiling[message.request.id] = None
            self._compiler.submit(self._compile, message)
        elif isinstance(message, Abort) and any(name in self._compiling for name in message.request_ids):
            self._compiler.submit(self._messages.put, message)
        else:
            self._messages.put(message)

    def _compile(self, message: Submit) -> None:
        request = message.request
        try:
            assert request.sampling.structured_outputs is not None
            grammar = self._grammars.compile(request.sampling.structured_outputs)
            self._messages.put(Submit(request.with_(grammar=grammar)))
        except TilewiseError as error:
            self._messages.put(Refused(request.id, error))
        finally:
            self._compiling.pop(request.id)

    @cached_property
    def _grammars(self) -> Grammars:
        from tilewise.inputs.grammar import Grammars
        from tilewise.inputs.tokenizer import Tokenizer

        return Grammars(Tokenizer.from_folder(self._folder), self._end_ids, checked_before=True)
