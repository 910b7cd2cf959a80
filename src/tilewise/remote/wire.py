"""What the engine's process and the one that feeds it say to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from tilewise.config import EngineConfig
from tilewise.engine.counters import Counters, Load
from tilewise.engine.delta import TokenDelta
from tilewise.engine.encode_core import EncodedDelta
from tilewise.errors import TilewiseError
from tilewise.host.memory import Memory
from tilewise.plan import Resolved
from tilewise.types import Request

if TYPE_CHECKING:
    from tilewise.weights.checkpoint import Checkpoint


Delta = TokenDelta | EncodedDelta


class Core(Protocol):
    """What runs in the engine's process: `EngineCore`, or what encodes pictures alone."""

    @property
    def has_unfinished(self) -> bool: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def load(self) -> Load: ...

    def submit(self, request: Request) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def reset(self, cache: Literal["prefix", "tiles"]) -> bool: ...

    def step(self) -> Sequence[Delta]: ...

    def check(self) -> None:
        """Raises RankDied if a process that computes for this one is gone; asked while there is no work."""

    def close(self) -> None: ...


Build = Callable[["Launch"], "tuple[Core, Ready]"]
"""Makes an engine, in its process."""


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
    """Makes the engine; None = the model's. A benchmark has one without a model."""
    part: Memory | None = None
    """What the engine may take of the machine's memory; None = what it finds."""
    first_device: int = 0
    """The number of the first GPU that its ranks take, where they take GPUs."""


@dataclass(frozen=True, slots=True)
class Submit:
    """A request; the grammar of a structured one is compiled where it arrives."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """End these requests wherever they are; unknown ones have just finished."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reset:
    """Empty a cache: prefixes in KV blocks, or encoded tiles."""

    cache: Literal["prefix", "tiles"]


@dataclass(frozen=True, slots=True)
class Close:
    """Drop what is left and end."""


ToEngine = Launch | Submit | Abort | Reset | Close


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    resolved: Resolved
    seconds: dict[str, float]
    """What the start took, by phase."""


@dataclass(frozen=True, slots=True)
class CannotStart:
    """Trying again would not help."""

    error: TilewiseError


@dataclass(frozen=True, slots=True)
class Ends:
    """The engine's process ends, for this reason; trying again may help."""

    error: TilewiseError


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that the engine does not take."""

    request_id: str
    error: TilewiseError


@dataclass(frozen=True, slots=True)
class Outbox:
    """What came of one step, and how busy the engine is."""

    deltas: tuple[Delta, ...]
    counters: Counters
    load: Load
    refused: tuple[Refused, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class WasReset:
    """What came of a `Reset`; they are answered in their order."""

    done: bool


FromEngine = Ready | CannotStart | Ends | Outbox | WasReset
