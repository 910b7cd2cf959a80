"""Goals: what an answer has to keep to count as good. Goodput is the rate of those that do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewise.bench.answers import Answer
from tilewise.errors import InvalidConfig, did_you_mean

NAMES = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True)
class Goals:
    """Most milliseconds; None = no goal."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @classmethod
    def read(cls, pairs: Sequence[str]) -> Goals:
        """`ttft:500 tpot:50` of --goodput. Raises InvalidConfig."""
        found: dict[str, float] = {}
        for pair in pairs:
            name, _, value = pair.partition(":")
            if name not in NAMES:
                hint = did_you_mean(name, NAMES)
                raise InvalidConfig(f"--goodput knows {', '.join(NAMES)}, got {pair!r}.{hint}")
            found[name] = _milliseconds(value, pair)
        return cls(**found)

    def met(self, answer: Answer, output_tokens: int) -> bool:
        """A single token has no time per output token, which is below every goal."""
        measured = (answer.first_content, answer.per_token(output_tokens) or 0.0, answer.latency)
        goals = (self.ttft, self.tpot, self.e2el)
        return all(goal is None or 1000 * value <= goal for value, goal in zip(measured, goals, strict=True))


def _milliseconds(text: str, pair: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise InvalidConfig(f"--goodput takes NAME:MILLISECONDS, such as ttft:500, got {pair!r}.")
    return value
