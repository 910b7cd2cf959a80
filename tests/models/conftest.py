"""Tiny checkpoints written once a session, and the parity table that `pytest tests/models -s` prints at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.tiny import SPECS, reference_model, write_hf


@dataclass
class ParityTable:
    """Worst absolute difference to transformers of each part of each model."""

    worst: dict[tuple[str, str, str], tuple[float, float]] = field(default_factory=dict)

    def check(self, model: str, ops: str, part: str, ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
        """Note the difference, then assert that it is within tolerance."""
        assert ours.shape == theirs.shape
        difference, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
        before, before_size = self.worst.get((model, part, ops), (0.0, 0.0))
        self.worst[model, part, ops] = (max(difference, before), max(size, before_size))
        assert difference < tolerance, f"{model}, {part}, {ops}: differs by {difference:.2e}"

    def lines(self) -> list[str]:
        head = f"{'model':<18} {'part':<22} {'ops':<13} {'worst difference':>16} {'largest value':>14}"
        rows = sorted(self.worst.items())
        return [head, *(f"{m:<18} {p:<22} {o:<13} {d:>16.1e} {s:>14.2f}" for (m, p, o), (d, s) in rows)]


_TABLE = pytest.StashKey[ParityTable]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash.get(_TABLE, None)
    if table is not None and config.getoption("capture") == "no":
        terminalreporter.section("ours against transformers, float32")
        for line in table.lines():
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest) -> ParityTable:
    return request.config.stash.setdefault(_TABLE, ParityTable())


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a tiny model -> its -hf folder."""
    root = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: write_hf(root / name, SPECS[name]))


@pytest.fixture(scope="session")
def theirs_of(folder_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """Name of a tiny model -> transformers' model."""
    return cache(lambda name: reference_model(folder_of(name)))
