"""ServerReport: what a server's metrics say about a run: pictures, their preprocessing, speculative decoding."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

TILES = "tilewise:tiles_encoded_total"
PREPROCESS = "vllm:mm_preprocessing_total_latency_seconds"
ENCODE = "tilewise:request_encode_time_seconds"
DRAFTS = "vllm:spec_decode_num_drafts_total"
DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


@dataclass(frozen=True)
class ServerReport:
    """Differences between two readings of /metrics, each summed over its labels."""

    grown: dict[str, float] = field(default_factory=dict)

    @classmethod
    def between(cls, before: str, after: str) -> ServerReport:
        earlier, later = _sums(before), _sums(after)
        return cls({name: value - earlier.get(name, 0.0) for name, value in later.items()})

    @property
    def tiles_encoded(self) -> int | None:
        """Tiles that were encoded; None where the server does not count them."""
        return int(self.grown[TILES]) if TILES in self.grown else None

    @property
    def preprocess(self) -> float | None:
        """Mean seconds of a request with media, before the engine had it."""
        return self._mean(PREPROCESS)

    @property
    def encode(self) -> float | None:
        """Mean seconds that a request waited for its tiles."""
        return self._mean(ENCODE)

    @property
    def drafts(self) -> int:
        return int(self.grown.get(DRAFTS, 0))

    @property
    def draft_tokens(self) -> int:
        return int(self.grown.get(DRAFT_TOKENS, 0))

    @property
    def accepted_tokens(self) -> int:
        return int(self.grown.get(ACCEPTED, 0))

    @property
    def acceptance_rate(self) -> float:
        """Draft tokens that were accepted, in percent."""
        return 100 * self.accepted_tokens / max(self.draft_tokens, 1)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens of a step that had a draft, its own one among them."""
        return 1 + self.accepted_tokens / self.drafts

    def as_json(self) -> dict[str, float | None]:
        """Return the fields about the server, times in milliseconds."""
        found: dict[str, float | None] = {"tiles_encoded": self.tiles_encoded}
        for name, seconds in (("mean_preprocess_ms", self.preprocess), ("mean_encode_ms", self.encode)):
            found[name] = None if seconds is None else 1000 * seconds
        if self.drafts:
            found |= {
                "spec_decode_acceptance_rate": self.acceptance_rate,
                "spec_decode_acceptance_length": self.acceptance_length,
                "spec_decode_num_drafts": self.drafts,
                "spec_decode_draft_tokens": self.draft_tokens,
                "spec_decode_accepted_tokens": self.accepted_tokens,
            }
        return found

    def _mean(self, histogram: str) -> float | None:
        count = self.grown.get(f"{histogram}_count", 0.0)
        return self.grown[f"{histogram}_sum"] / count if count else None


def _sums(text: str) -> dict[str, float]:
    """Read Prometheus' text format: the sum of each metric over its labels; nothing of a text that is none."""
    found: dict[str, float] = defaultdict(float)
    with suppress(ValueError):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] += sample.value
    return found
