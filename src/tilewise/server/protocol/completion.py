"""/v1/completions."""

from __future__ import annotations

from tilewise.server.protocol.common import Sampled


class CompletionBody(Sampled):
    prompt: str | list[int] | list[str | list[int]]
    max_completion_tokens: int | None = None
    logprobs: int | None = None
    echo: bool = False
    add_special_tokens: bool = True
