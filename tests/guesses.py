"""Options of speculative decoding for tests, as short as they can be said."""

from __future__ import annotations

from tilewise.speculation import SpeculativeConfig


def lookup(tokens: int, shortest: int, longest: int) -> SpeculativeConfig:
    """Guess up to `tokens` at a time by n-gram lookup."""
    return SpeculativeConfig(
        method="ngram", num_speculative_tokens=tokens, prompt_lookup_min=shortest, prompt_lookup_max=longest
    )


def drafting(tokens: int) -> SpeculativeConfig:
    """Guess up to `tokens` at a time by a draft model, which the test brings along."""
    return SpeculativeConfig(method="draft_model", num_speculative_tokens=tokens, model="draft")
