"""Sampling without a sort against `platforms.draw` and `runner.logits`: the same tokens, whatever the row holds.

Top-p decides between tokens by sums of floats; that these differ by more than rounding in every row that is drawn here,
`decided` checks in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor

from tilewise.platforms.cuda.kernels import sampling
from tilewise.platforms.draw import Draw, draw, exponential_noise, noise_key, survivors
from tilewise.runner.logits import BANNED, LogitsRow
from tilewise.sampling_params import SamplingParams
from tilewise.step import Admission

MIXED: list[dict[str, float]] = [
    {"temperature": 0},
    {},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.9, "top_p": 0.9},
    {"top_k": 30},
    {"top_k": 150, "min_p": 0.01, "top_p": 0.99},
    {"min_p": 0.2},
    {"top_p": 0.5, "min_p": 0.02},
    {"top_k": 1000},
    {"top_p": 1e-9, "temperature": 0.01},
]

no_numbers = pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero")
"""numpy warns of what a GPU computes without a word."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a few hundred tokens are spread over several programs."""
    monkeypatch.setattr(sampling, "_CHUNK", 128)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(settings: Sequence[dict[str, float]]) -> list[LogitsRow]:
    every = [SamplingParams(**one) for one in settings]  # type: ignore[arg-type]
    return [LogitsRow(i, i, 5 + i, Admission(i, (0,), 1, one, 11 * i, frozenset())) for i, one in enumerate(every)]


def draw_of(row: LogitsRow) -> Draw:
    own = row.sampling
    key = noise_key(row.admission.seed, row.length)
    return Draw(row.index, own.temperature, own.top_k, own.top_p, own.min_p, key)


def drawn(logits: Tensor, rows: Sequence[LogitsRow], device: torch.device, **known: bool) -> list[int]:
    def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor([getattr(row.sampling, name) for row in rows], dtype=dtype).to(device)

    keys = [noise_key(row.admission.seed, row.length) for row in rows]
    found = sampling.draw_rows(
        logits.to(device),
        torch.tensor([row.index for row in rows], dtype=torch.int64).to(device),
        column("temperature"),
        column("top_k", torch.int32),
        column("top_p"),
        column("min_p"),
        torch.tensor(keys, dtype=torch.int32).reshape(-1, 2).to(device),
        **known,
    )
    return found.tolist()


def expected(logits: Tensor, rows: Sequence[LogitsRow]) -> list[int]:
    return [
        int(logits[row.index].argmax() if row.sampling.greedy else draw(logits.clone(), [draw_of(row)])[0])
        for row in rows
    ]


def decided(logits: Tensor, rows: Sequence[LogitsRow]) -> bool:
    """Whether no sum that top-p compares is within 1e-6 of its share."""
    for row in rows:
        own = row.sampling
        if own.greedy or own.top_p == 1:
            continue
        values = (logits[row.index] / own.temperature).sort(descending=True).values
        left = values if own.top_k <= 0 else values[values >= values[min(own.top_k, len(values)) - 1]]
        weights = (left.double() - left[0].double()).exp()
        weights = weights[weights >= own.min_p]
        if float((weights.cumsum(0) / weights.sum() - own.top_p).abs().min()) < 1e-6:
            return False
    return True


@pytest.fixture
def thresholds(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Those of each group of rows that is drawn."""
    found: list[list[int]] = []
    of_rows = sampling.thresholds_of

    def written_down(*arguments: Any) -> Tensor:
        own = of_rows(*arguments)
        found.append(own.tolist())
        return own

    monkeypatch.setattr(sampling, "thresholds_of", written_down)
    return found


def kept_from(threshold: int, logits: Tensor, row: LogitsRow) -> list[int]:
    """Tokens that a threshold and min-p leave."""
    scaled = logits[row.index] / row.sampling.temperature + 0.0
    bits = scaled.view(torch.int32)
    pattern = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    left = (pattern >= threshold) & ((scaled - scaled.max()).exp() >= row.sampling.min_p)
    return left.nonzero().flatten().tolist()


def kept_of(logits: Tensor, row: LogitsRow) -> list[int]:
    scaled = logits[row.index][None] / row.sampling.temperature
    values, ids = scaled.sort(descending=True)
    left, _ = survivors(values, scaled, [draw_of(row)])
    return ids[left].sort().values.tolist()


def same_tokens_are_left(logits: Tensor, rows: Sequence[LogitsRow], thresholds: list[list[int]]) -> None:
    """Tokens without weight are left by one and not by the other."""
    (own,) = thresholds
    for row, threshold in zip(rows, own, strict=True):
        if not row.sampling.greedy:
            heavy = {token for token in range(logits.shape[1]) if logits[row.index, token] > BANNED / 2}
            found, right = kept_from(threshold, logits, row), kept_of(logits, row)
            assert heavy.intersection(found) == heavy.intersection(right), row.sampling


@pytest.mark.parametrize("kind", ["spread", "even", "peaked", "ties"])
def test_settings_mixed_in_a_batch(kind: str, device: torch.device, thresholds: list[list[int]]) -> None:
    logits = random(len(MIXED), 201, seed=3) * {"even": 0.05, "peaked": 9.0}.get(kind, 2.0)
    if kind == "ties":
        logits = logits.round()
    rows = rows_of(MIXED) if kind == "spread" else rows_of(MIXED)[2:6]
    assert decided(logits, rows)
    assert drawn(logits, rows, device) == expected(logits, rows)
    same_tokens_are_left(logits, rows, thresholds)


def test_tokens_follow_each_key(device: torch.device) -> None:
    """Many draws from one row, whose survivors all come."""
    logits = random(1, 40).expand(8, -1)
    rows = rows_of([{"top_k": 3}] * 8)
    found = drawn(logits, rows, device)
    assert found == expected(logits, rows)
    assert set(found) == set(logits[0].topk(3).indices.tolist())


def test_what_is_ruled_out_is_not_drawn(device: torch.device, thresholds: list[list[int]]) -> None:
    logits = random(6, 200, seed=5)
    logits[:, 3:190] = -inf
    logits[:, ::2] = BANNED
    logits[1] = torch.where(torch.arange(200) == 77, BANNED, -inf)
    logits[2] = BANNED
    logits[4, :10], logits[4, 10:], logits[4, 5] = -0.0, -1.0, 0.0
    rows = rows_of([{"top_k": 150, "top_p": 0.9}, {"top_p": 0.9}, {"top_k": 7}, {}, {"top_k": 1}, {"min_p": 0.5}])
    assert decided(logits, rows)
    assert drawn(logits, rows, device) == expected(logits, rows)
    same_tokens_are_left(logits, rows, thresholds)


@no_numbers
def test_rows_that_are_no_numbers_give_what_argmax_gives(device: torch.device) -> None:
    logits = random(6, 200, seed=6)
    logits[:2, 150] = nan
    logits[2] = -inf
    logits[3, 60], logits[3, 131] = inf, inf
    logits[4:] = -nan
    rows = rows_of([{"temperature": 0}, {}, {}, {"top_k": 5, "top_p": 0.5}, {"top_p": 0.5}, {"temperature": 0}])
    assert drawn(logits, rows, device) == [150, 0, 0, 60, 0, 0]


def test_a_token_depends_on_its_row_alone(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in another order, some twice, some not at all, and in groups."""
    logits, rows = random(len(MIXED), 150, seed=8), rows_of(MIXED)
    picked = [rows[place] for place in (7, 2, 5, 2)]
    monkeypatch.setattr(sampling, "_GROUP_BYTES", 2 * 4 * 150)
    assert drawn(logits, picked, device) == expected(logits, picked)


def test_what_the_host_knows_spares_kernels_and_changes_nothing(device: torch.device) -> None:
    logits = random(3, 140, seed=9)
    logits[1, 50] = logits[1, 130] = 9.0
    greedy, whole = rows_of([{"temperature": 0}] * 3), rows_of([{}, {"min_p": 0.1}, {"temperature": 0}])
    assert drawn(logits, greedy, device, random=False) == logits.argmax(-1).tolist()
    assert drawn(logits, whole, device, truncated=False) == expected(logits, whole)
    assert drawn(logits, [], device) == []


def test_the_noise_is_that_of_the_engine(device: torch.device) -> None:
    """Through the race alone: of equal logits the token with the least noise is drawn."""
    rows = rows_of([{}] * 6)
    keys = torch.tensor([noise_key(row.admission.seed, row.length) for row in rows], dtype=torch.int32)
    least = exponential_noise(keys, torch.arange(4000, dtype=torch.int32)).argmin(-1)
    sampling._CHUNK = 4096
    assert drawn(torch.zeros(6, 4000), rows, device, truncated=False) == least.tolist()
