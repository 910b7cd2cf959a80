"""Where results go: JSON with vLLM's field names, under vLLM's file names."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tilewise.bench.answers import Answer
from tilewise.bench.figures import Figures, Measured
from tilewise.bench.load import Load
from tilewise.errors import InvalidConfig, TilewiseError


class NotSaved(TilewiseError):
    """A result could not be written."""


@dataclass(frozen=True)
class Saving:
    save: bool = False
    detailed: bool = False
    append: bool = False
    folder: Path = Path()
    name: str | None = None
    label: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def write(self, result: dict[str, Any], path: Path) -> None:
        """Raises NotSaved."""
        text = json.dumps(result)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if self.append else "w", encoding="utf-8") as file:
                file.write("\n" + text if file.tell() else text)
        except OSError as error:
            raise NotSaved(
                f"The result could not be saved in {path}: {error.strerror or error}. Name another folder with "
                "--result-dir; the table above is complete."
            ) from None

    def path(self, backend: str, load: Load, model: str, now: datetime) -> Path:
        return self.folder / (self.name or self._name(backend, load, model, now))

    def _name(self, backend: str, load: Load, model: str, now: datetime) -> str:
        ramp, limit = load.arrivals.ramp, load.concurrency
        rate = f"ramp-up-{ramp.strategy}-{ramp.start:g}qps-{ramp.end:g}" if ramp else f"{load.arrivals.rate}"
        most = "" if limit is None else f"-concurrency{limit}"
        return f"{self.label or backend}-{rate}qps{most}-{model.split('/')[-1]}-{now:%Y%m%d-%H%M%S}.json"

    @staticmethod
    def read_metadata(pairs: Sequence[str], flag: str = "--metadata") -> dict[str, str]:
        """`KEY=VALUE ...`. Raises InvalidConfig."""
        found = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or not key.strip():
                raise InvalidConfig(f"{flag} takes KEY=VALUE, got {pair!r}.")
            found[key.strip()] = value.strip()
        return found


@dataclass(frozen=True, slots=True)
class About:
    """Of a run, for its result."""

    backend: str
    model: str
    tokenizer: str | None
    count: int
    load: Load


def result_json(about: About, saving: Saving, figures: Figures, now: datetime) -> dict[str, Any]:
    arrivals = about.load.arrivals
    ramp = arrivals.ramp
    ramped = {} if ramp is None else {
        "ramp_up_strategy": ramp.strategy, "ramp_up_start_rps": ramp.start, "ramp_up_end_rps": ramp.end
    }  # fmt: skip
    return {
        "date": f"{now:%Y%m%d-%H%M%S}",
        "endpoint_type": about.backend,
        "backend": about.backend,
        "label": saving.label,
        "model_id": about.model,
        "tokenizer_id": about.tokenizer,
        "num_prompts": about.count,
        **saving.metadata,
        "request_rate": "inf" if math.isinf(arrivals.rate) else arrivals.rate,
        "burstiness": arrivals.burstiness,
        "max_concurrency": about.load.concurrency,
        **ramped,
        **figures.as_json(),
    }


def details(answers: Sequence[Answer], measured: Sequence[Measured]) -> dict[str, list[Any]]:
    """Of each request, in the order in which they were sent; an answer that failed has no tokens."""
    whole = {id(item.answer): item for item in measured}
    items = [whole.get(id(answer)) for answer in answers]
    return {
        "input_lens": [
            item.input_tokens if item else answer.tokens.prompt or 0 for answer, item in _pairs(answers, items)
        ],
        "output_lens": [item.output_tokens if item else 0 for item in items],
        "start_times": [answer.start for answer in answers],
        "queue_times": [answer.queued for answer in answers],
        "ttfts": [answer.first_content for answer in answers],
        "first_chunks": [answer.first_chunk or 0.0 for answer in answers],
        "itls": [answer.gaps for answer in answers],
        "latencies": [answer.latency for answer in answers],
        "generated_texts": [answer.text for answer in answers],
        "errors": [f"{answer.failure.kind}: {answer.failure.text}" if answer.failure else "" for answer in answers],
    }


def _pairs(answers: Sequence[Answer], items: Sequence[Measured | None]) -> list[tuple[Answer, Measured | None]]:
    return list(zip(answers, items, strict=True))


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Of `--output-json`. Raises NotSaved."""
    Saving().write(result, path)
