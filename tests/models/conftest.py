"""Tiny checkpoints written once a session, and the parity table.

`pytest tests/models -s` prints it at its end, `pytest tests/models --parity-json FILE` keeps it for `make matrix`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.models.driving import load
from tests.tiny import SPECS, TWINS, reference_model, write_hf, write_original
from tilewise.models.decoder import InternVL
from tilewise.platforms.ops import Ops


@dataclass(frozen=True)
class Comparison:
    """What was compared: which part of which model, read from which format, computed by which ops."""

    model: str
    form: str
    part: str
    ops: str


@dataclass
class Difference:
    """The worst absolute difference seen, the largest value, and what was allowed; tolerance 0 = no bit differs."""

    tolerance: float
    worst: float = 0.0
    largest: float = 0.0

    def note(self, ours: Tensor, theirs: Tensor) -> None:
        self.worst = max(self.worst, float((ours - theirs).abs().max()))
        self.largest = max(self.largest, float(theirs.abs().max()))


@dataclass
class ParityTable:
    """Worst difference of each part of each model, to transformers or to the other format of the same model."""

    rows: dict[Comparison, Difference] = field(default_factory=dict)

    def check(
        self,
        model: str,
        ops: str,
        part: str,
        ours: Tensor,
        theirs: Tensor,
        tolerance: float = 1e-4,
        form: str = "original",
    ) -> None:
        """Note the difference, then assert that it is within tolerance."""
        assert ours.shape == theirs.shape
        row = self.rows.setdefault(Comparison(model, form, part, ops), Difference(tolerance))
        row.note(ours, theirs)
        assert row.worst <= tolerance, f"{model}, {part}, {ops}, {form}: differs by {row.worst:.2e}"

    def same_tokens(self, model: str, ops: str, part: str, ours: Sequence[int], theirs: Sequence[int]) -> None:
        """Note the number of tokens that differ, then assert that none does."""
        assert len(ours) == len(theirs)
        row = self.rows.setdefault(Comparison(model, "original", part, ops), Difference(0.0))
        row.note(torch.tensor(ours).ne(torch.tensor(theirs)).float(), torch.zeros(len(theirs)))
        assert list(ours) == list(theirs)

    def lines(self) -> list[str]:
        head = f"{'model':<42} {'format':<9} {'part':<24} {'ops':<13} {'worst difference':>16} {'largest value':>14}"
        rows = sorted(self.rows.items(), key=lambda row: tuple(asdict(row[0]).values()))
        return [
            head,
            *(
                f"{what.model:<42} {what.form:<9} {what.part:<24} {what.ops:<13} {d.worst:>16.1e} {d.largest:>14.2f}"
                for what, d in rows
            ),
        ]

    def to_json(self) -> str:
        rows = [{**asdict(what), **asdict(difference)} for what, difference in self.rows.items()]
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return json.dumps({"versions": versions, "rows": rows}, indent=1)


_TABLE = pytest.StashKey[ParityTable]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-json", metavar="FILE", help="write the parity table there")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash.get(_TABLE, None)
    if table is None:
        return
    if path := config.getoption("parity_json", None):
        Path(path).write_text(table.to_json(), encoding="utf-8")
    if config.getoption("capture") == "no":
        terminalreporter.section("ours against transformers, float32")
        for line in table.lines():
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest) -> ParityTable:
    return request.config.stash.setdefault(_TABLE, ParityTable())


FolderOf = Callable[[str], Path]
OursOf = Callable[[str, str, Ops], InternVL]
TheirsOf = Callable[[str], Any]
EVERY = {**TWINS, **SPECS}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """Name of a tiny model -> its folder in the original format."""
    root = tmp_path_factory.mktemp("original")
    return cache(lambda name: write_original(root / name, EVERY[name]))


@pytest.fixture(scope="session")
def hf_folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """Name of a tiny model -> its -hf folder."""
    root = tmp_path_factory.mktemp("hf")
    return cache(lambda name: write_hf(root / name, EVERY[name]))


@pytest.fixture(scope="session")
def ours_of(folder_of: FolderOf, hf_folder_of: FolderOf) -> OursOf:
    """Name of a tiny model, the format to read it from and ops -> our model."""
    folders = {"original": folder_of, "hf": hf_folder_of}
    return cache(lambda name, form, ops: load(folders[form](name), ops))


@pytest.fixture(scope="session")
def theirs_of(hf_folder_of: FolderOf) -> TheirsOf:
    """Name of a tiny model -> transformers' model of the same numbers."""
    return cache(lambda name: reference_model(hf_folder_of(name)))
