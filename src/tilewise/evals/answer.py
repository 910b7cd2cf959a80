"""Answer: what a model said to one question of a task, or how likely it found a given one."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from tilewise.types import RequestOutput, TokenIds


@dataclass(frozen=True, slots=True)
class Answer:
    """Text and tokens of a generated answer; `logprob` and `greedy` of a continuation that was given."""

    text: str = ""
    token_ids: TokenIds = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    seconds: float = 0.0
    """From its arrival at the engine to its end; answers run beside each other."""
    logprob: float | None = None
    """Of all tokens of the continuation together, natural logarithm."""
    greedy: bool | None = None
    """Whether the model would have chosen each of them."""
    problem: str | None = None
    """Why there is none."""

    @classmethod
    def of(cls, output: RequestOutput, scored: int) -> Answer:
        """`scored` tokens at the end of the prompt are the continuation; with none, what was generated counts."""
        said, took = output.outputs[0], (output.usage.prompt_tokens, output.timing.total or 0.0)
        if scored:
            return cls("", (), None, *took, *_score(output, scored))
        return cls(said.text, tuple(said.token_ids), said.finish_reason, *took)

    @classmethod
    def failed(cls, problem: str) -> Answer:
        """Without words, and without a likelihood."""
        return cls(problem=problem)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Answer:
        values = json.loads(text)
        return cls(**{**values, "token_ids": tuple(values["token_ids"])})


def _score(output: RequestOutput, scored: int) -> tuple[float, bool]:
    """Sum of log-probabilities of the last prompt tokens, and whether each was the likeliest."""
    ids, rows = output.prompt_token_ids[-scored:], (output.prompt_logprobs or [])[-scored:]
    chosen = [row[token] for token, row in zip(ids, rows, strict=True) if row is not None]
    return sum(entry.logprob for entry in chosen), all(entry.rank == 1 for entry in chosen)
