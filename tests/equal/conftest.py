"""The equality table: what the contract of the engine allows, and what was seen. `make equality` prints it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from tests.equal import contract, driver
from tests.platforms.ascend import device
from tests.platforms.cuda import card


@dataclass
class Row:
    """One sentence of the contract: how often it was tried, and the worst difference of logits."""

    runs: set[str] = field(default_factory=set)
    requests: int = 0
    worst: float = 0.0
    allowed: float = 0.0


_ROWS: dict[str, Row] = {}


def _note(found: Tensor, expected: Tensor, allowed: float) -> None:
    test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split(" ")[0]
    name = test.partition("[")[0].removeprefix("test_").replace("_", " ")
    row = _ROWS.setdefault(name, Row())
    row.runs.add(test)
    row.requests += 1
    row.worst = max(row.worst, float((found - expected).abs().max()))
    row.allowed = max(row.allowed, allowed)


contract.watchers.append(_note)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--equality", action="store_true", help="print the equality table")
    parser.addoption("--card", action="store_true", help="over the ops of a GPU, on the card of the tests")
    parser.addoption("--npu", action="store_true", help="over the ops of an NPU, on the checking device")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("npu", False):
        memory = card.DEVICE if config.getoption("card", False) else card.HOST
        driver.default_platform = lambda: device.CheckingPlatform(device.lenient_ops, memory)

    if config.getoption("card", False):
        stack = ExitStack()
        stack.enter_context(card.installed())
        config.add_cleanup(stack.close)
        if not config.getoption("npu", False):
            driver.default_platform = card.CardPlatform


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not (config.getoption("equality", False) and _ROWS):
        return
    terminalreporter.section("the same tokens in every request, and the worst difference of logits")
    terminalreporter.line(f"{'contract':<72} {'runs':>5} {'requests':>9} {'worst':>9} {'allowed':>9}")
    for name, row in _ROWS.items():
        allowed = f"{row.allowed:.0e}" if row.allowed else "bit-equal"
        terminalreporter.line(f"{name:<72} {len(row.runs):>5} {row.requests:>9} {row.worst:>9.1e} {allowed:>9}")
