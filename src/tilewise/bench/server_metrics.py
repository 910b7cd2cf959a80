"""ServerMetrics: the account that a server's metrics give of a run: pictures, their preprocessing, drafts."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class ServerMetrics:
    """Differences between two readings of /metrics, each summed over its labels; None = the server has no such one."""

    tiles_encoded: int | None = None
    mean_preprocess_ms: float | None = None
    """Time of a request with media, before the engine had it."""
    mean_encode_ms: float | None = None
    """Time that a request waited for its tiles."""
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @classmethod
    def between(cls, before: str, after: str) -> ServerMetrics:
        earlier = _sums(before)
        grown = {name: value - earlier.get(name, 0.0) for name, value in _sums(after).items()}

        def mean_ms(histogram: str) -> float | None:
            count = grown.get(f"{histogram}_count", 0.0)
            return 1000 * grown[f"{histogram}_sum"] / count if count else None

        tiles = grown.get("tilewise:tiles_encoded_total")
        return cls(
            tiles_encoded=None if tiles is None else int(tiles),
            mean_preprocess_ms=mean_ms("vllm:mm_preprocessing_total_latency_seconds"),
            mean_encode_ms=mean_ms("tilewise:request_encode_time_seconds"),
            drafts=int(grown.get("vllm:spec_decode_num_drafts_total", 0)),
            draft_tokens=int(grown.get("vllm:spec_decode_num_draft_tokens_total", 0)),
            accepted_tokens=int(grown.get("vllm:spec_decode_num_accepted_tokens_total", 0)),
        )

    @property
    def acceptance_rate(self) -> float:
        """Draft tokens that were accepted, in percent."""
        return 100 * self.accepted_tokens / max(self.draft_tokens, 1)

    @property
    def acceptance_length(self) -> float:
        """Mean tokens of a step that had a draft, its own one among them."""
        return 1 + self.accepted_tokens / self.drafts

    def as_json(self) -> dict[str, float | None]:
        pictures = {name: getattr(self, name) for name in ("tiles_encoded", "mean_preprocess_ms", "mean_encode_ms")}
        if not self.drafts:
            return pictures
        return pictures | {
            "spec_decode_acceptance_rate": self.acceptance_rate,
            "spec_decode_acceptance_length": self.acceptance_length,
            "spec_decode_num_drafts": self.drafts,
            "spec_decode_draft_tokens": self.draft_tokens,
            "spec_decode_accepted_tokens": self.accepted_tokens,
        }


def _sums(text: str) -> dict[str, float]:
    """Read Prometheus' text format: the sum of each metric over its labels; nothing of a text that is none."""
    found: dict[str, float] = defaultdict(float)
    with suppress(ValueError):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] += sample.value
    return found
