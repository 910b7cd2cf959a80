"""Every kernel compiles for every card, spills no more than it may, and uses the tensor cores that it claims to use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest

from tests.platforms.cuda.ahead import TENSOR_CORES
from tests.platforms.cuda.launches import CARDS, CLAIMS, LAUNCHES, claim_of

Lines = Mapping[str, list[dict[str, Any]]]
"""By case, what was said of its kernels."""


@pytest.fixture(scope="module")
def lines() -> Lines:
    """All cases, compiled in one process of its own, since kernels of this one may be the interpreter's."""
    compiler = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.platforms.cuda.ahead"]
    done = subprocess.run(command, env=compiler, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found = defaultdict[str, list[dict[str, Any]]](list)
    for line in map(json.loads, done.stdout.splitlines()):
        found[line["case"]].append(line)
    return found


@pytest.mark.parametrize("case", LAUNCHES)
def test_compiled_as_claimed(case: str, lines: Lines) -> None:
    assert lines[case], "It launches nothing."
    for built in lines[case]:
        assert "failed" not in built, built["failed"]
        claim = claim_of(built["kernel"], case)
        assert built["spilled"] <= claim.spilled, built
        family = claim.tensor_cores.get(built["card"])
        assert family is None or family in built["tensor_cores"], built


def test_claims_are_of_kernels_that_are_compiled(lines: Lines) -> None:
    compiled = {f"{one.get('kernel')} {case} " for case, several in lines.items() for one in several}
    for words, claim in CLAIMS.items():
        assert any(found.startswith(f"{words} ") for found in compiled), words
        assert set(claim.tensor_cores) <= set(CARDS), words
        assert set(claim.tensor_cores.values()) <= set(TENSOR_CORES), words
