"""Answer: what a client saw of one request, with moments in seconds after it was sent."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Tokens:
    """As the server counts them in `usage`; None where it does not say."""

    prompt: int | None = None
    completion: int | None = None
    image: int | None = None
    tiles: int | None = None
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """`kind` is what failures are counted by; `text` is about this one."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    start: float
    """On the clock of the run: its beginning is 0."""
    queued: float = 0.0
    """Seconds that it waited in this client before, for a place below the limit of concurrency."""
    first_chunk: float | None = None
    """The first chunk of an answer, which may say no more than that there will be one. vLLM's TTFT."""
    contents: tuple[float, ...] = ()
    """Each chunk that brought text, reasoning or a piece of a tool call."""
    latency: float = 0.0
    """The last chunk of an answer."""
    text: str = ""
    tokens: Tokens = Tokens()
    failure: Failure | None = None

    @property
    def first_content(self) -> float:
        """The time to first token. An answer in which there was nothing to see counts from its end."""
        return self.contents[0] if self.contents else self.latency

    @property
    def gaps(self) -> list[float]:
        """Between chunks with content."""
        return [later - earlier for earlier, later in pairwise(self.contents)]

    def per_token(self, output_tokens: int) -> float | None:
        """Mean time of each token behind the first; None where there is none."""
        return (self.latency - self.first_content) / (output_tokens - 1) if output_tokens > 1 else None
