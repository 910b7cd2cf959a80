"""Messages between the engine's process and the one that feeds it, and the pipe that carries them."""

from __future__ import annotations

import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tilewise.config import EngineConfig
from tilewise.engine.counters import Counters, EngineLoad
from tilewise.engine.encode_core import EncodedDelta
from tilewise.errors import TilewiseError
from tilewise.host import Memory
from tilewise.inputs.media.tile_memory import Loan, StoredTile, TileForm, TileMemory, TileRef
from tilewise.plan import Resolved
from tilewise.types import Request, SequenceDelta

if TYPE_CHECKING:
    from tilewise.inputs.model_inputs import ModelInputs
    from tilewise.weights.checkpoint import Checkpoint


_LENGTH = struct.Struct("!Q")
_PIECE = 2**18  # bytes that are asked for at once


def pipe() -> tuple[Pipe, socket.socket]:
    """Return our end, and the socket that becomes theirs, once it is in the other process.

    The pair is made before the engine's process, which inherits its end: nobody else can send what is unpickled here.
    """
    ours, theirs = socket.socketpair()
    return Pipe(ours), theirs


def framed(message: object) -> bytes:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class Pipe:
    """One end of a pipe of pickled messages, each behind its length. One thread may read while another writes."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unread = bytearray()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: object) -> None:
        """Send a message, waiting until the pipe has space for all of it. Raises OSError if the other side is gone."""
        self._end.sendall(framed(message))

    def send_rest(self, data: memoryview) -> None:
        """Send what `send_some` left, waiting as `send` does. Raises OSError as there."""
        self._end.sendall(data)

    def send_some(self, data: memoryview) -> int:
        """Send as much as the pipe has space for, never waiting; return how many bytes. Raises OSError as `send`."""
        try:
            return self._end.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def receive(self) -> Any:
        """Wait for the next message and return it. Raises EOFError when none will come."""
        while (data := self._frame()) is None:
            self._read(0)
        return pickle.loads(data)

    def arrived(self) -> Iterator[Any]:
        """Yield the messages that are there whole, never waiting. Raises EOFError behind the last one of all."""
        while True:
            while (data := self._frame()) is not None:
                yield pickle.loads(data)
            try:
                self._read(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    @property
    def closed(self) -> bool:
        return self._end.fileno() < 0

    def close(self) -> None:
        """Close this end; a thread that waits to send gets an error."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def _read(self, flags: int) -> None:
        try:
            data = self._end.recv(_PIECE, flags)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        self._unread += data

    def _frame(self) -> bytes | None:
        """Return the first message that is there whole, still pickled; None if there is none."""
        if len(self._unread) < _LENGTH.size:
            return None
        stop = _LENGTH.size + _LENGTH.unpack_from(self._unread)[0]
        if len(self._unread) < stop:
            return None
        data = bytes(self._unread[_LENGTH.size : stop])
        del self._unread[:stop]
        return data


Delta = SequenceDelta | EncodedDelta


class Core(Protocol):
    """The engine in its process: `EngineCore`, or `EncodeCore`, which encodes pictures alone."""

    @property
    def has_unfinished(self) -> bool: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def load(self) -> EngineLoad: ...

    def submit(self, request: Request) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def reset(self, cache: Literal["prefix", "tiles"]) -> bool: ...

    def step(self) -> Sequence[Delta]: ...

    def check(self) -> None:
        """Raise RankDied if a process that computes for this one is gone; called while there is no work."""

    def close(self) -> None: ...


Build = Callable[["Launch"], "tuple[Core, Ready]"]
"""A function that makes an engine, called in the engine's process."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that an engine is started from."""

    config: EngineConfig
    model: Checkpoint
    draft: Checkpoint | None
    image_context_id: int
    end_ids: frozenset[int]
    """End tokens of the model, where structured answers may end."""
    build: Build | None = None
    """Function that makes the engine; None = the model's. A benchmark has one without a model."""
    part: Memory | None = None
    """Memory of the machine that the engine may take; None = what it finds."""
    first_device: int = 0
    """The number of the first GPU that its ranks take, where they take GPUs."""
    tiles: TileForm | None = None
    """Form of the memory that its process shares with the one that cuts pictures; None = pixels come with requests."""

    @classmethod
    def of(cls, model: ModelInputs, part: Memory | None = None, build: Build | None = None) -> Launch:
        image_context_id, end_ids = model.tokenizer.image_context_id, model.spec.end_ids
        return cls(model.config, model.checkpoint, model.draft, image_context_id, end_ids, build, part)


@dataclass(frozen=True, slots=True)
class Submit:
    """A request; the grammar of a structured one is compiled where it arrives."""

    request: Request
    loan: int | None = None
    """Number under which it has tiles in shared memory, of which it has references alone; None = it has none."""

    @classmethod
    def of(cls, request: Request, loan: int) -> Submit:
        """Make a message in which tiles of shared memory are references."""
        if not any(isinstance(tile, StoredTile) for image in request.images for tile in image.tiles):
            return cls(request)
        return cls(_with_tiles(request, lambda tile: tile.ref if isinstance(tile, StoredTile) else tile), loan)

    def opened(self, memory: TileMemory | None, returned: deque[int]) -> Submit:
        """Return the message with tiles for references; `returned` gets the loan's number when none is in use."""
        if self.loan is None or memory is None:
            return self
        loan = Loan(self.loan, returned)
        opened = _with_tiles(self.request, lambda tile: loan.tile(memory, tile) if isinstance(tile, TileRef) else tile)
        return Submit(opened)


def _with_tiles(request: Request, of: Callable[[Any], Any]) -> Request:
    images = (replace(image, tiles=tuple(map(of, image.tiles))) for image in request.images)
    return request.with_(images=tuple(images))


@dataclass(frozen=True, slots=True)
class Abort:
    """A message to end requests wherever they are; unknown ones have just finished."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResetCache:
    """A message to empty a cache: prefixes in KV blocks, or encoded tiles."""

    cache: Literal["prefix", "tiles"]


@dataclass(frozen=True, slots=True)
class Close:
    """A message to drop what is left and end."""


ToEngine = Launch | Submit | Abort | ResetCache | Close


@dataclass(frozen=True, slots=True)
class Ready:
    """The news that the model is loaded."""

    resolved: Resolved
    seconds: dict[str, float]
    """Seconds that the start took, by phase."""


@dataclass(frozen=True, slots=True)
class CannotStart:
    """The news that the engine cannot start; trying again would not help."""

    error: TilewiseError


@dataclass(frozen=True, slots=True)
class Ends:
    """The news that the engine's process ends, and why; trying again may help."""

    error: TilewiseError


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A request that an engine does not take, or that ended with an error."""

    request_id: str
    error: TilewiseError


@dataclass(frozen=True, slots=True)
class Outbox:
    """The tokens of one step and the requests refused before it, and how busy the engine is."""

    deltas: tuple[Delta, ...]
    counters: Counters
    load: EngineLoad
    refused: tuple[RequestRefused, ...] = ()


@dataclass(frozen=True, slots=True)
class WasReset:
    """The answer to a `ResetCache`; answers come in the order of the messages."""

    done: bool
    """True if all of the cache is empty now."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The loans of which no tile is in use any more."""

    loans: tuple[int, ...]


FromEngine = Ready | CannotStart | Ends | Outbox | WasReset
