"""Every kernel compiles for every card, fits into its shared memory, spills no more than it may, and uses the tensor
cores that it claims to use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.platforms.cuda.ahead import TENSOR_CORES
from tests.platforms.cuda.launches import CARDS, CLAIMS, LAUNCHES, SHARED, claim_of

OF_NUMBERS = (
    *("add_rms_norm 8B", "rms_norm 30B-A3B heads", "add_layer_norm 300M", "add_scaled 8B", "gelu 300M", "silu_mul 8B"),
    *("scatter_rows 8B", "patchify", "rope 8B", "rope 8B fp8", "int8_rows 8B", "int8_rows_static 8B", "draw_rows 64"),
    *("fp8_rows 8B", "fp8_groups 8B", "rope 8B normed", "choice 30B-A3B"),
)
OF_TENSOR_CORES = (
    *("experts dense prefill 30B-A3B", "experts int4 decode 30B-A3B", "int8_product 8B 3400"),
    *("grouped_product few UINT4 128 8B 1", "grouped_product many INT4 32 8B 64"),
    *("attention decode 8B", "attention prefill 8B", "attention tiles 300M"),
)
"""Names of cases, without their cards, that between them have every kernel, and each way of it on tensor cores. The
others differ in sizes and dtypes (`make test-ahead`)."""
REPRESENTATIVES = {f"{name} sm_90" for name in OF_NUMBERS} | {
    *(f"{name} {card}" for name in OF_TENSOR_CORES for card in ("sm_80", "sm_90", "sm_100", "sm_120")),
    *(f"fp8_product 8B 3400 {card}" for card in ("sm_89", "sm_120")),
    *(f"fp8_product blocks 8B 3400 {card}" for card in ("sm_90", "sm_100")),
}
"""Cases that are compiled by default: without tensor cores all cards compute alike, and desktop cards before Blackwell
multiply as an A100 does."""


class Compiler:
    """A process of its own, since kernels of this one may be the interpreter's."""

    def __init__(self) -> None:
        variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "tests.platforms.cuda.ahead", "-"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=variables)
        self._built: dict[str, list[dict[str, Any]]] = {}

    def built(self, case: str) -> list[dict[str, Any]]:
        """What is said of the kernels of a case."""
        if case not in self._built:
            assert self._process.stdin
            assert self._process.stdout
            print(case, file=self._process.stdin, flush=True)
            self._built[case] = list(map(json.loads, iter(self._process.stdout.readline, "\n")))
        return self._built[case]

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    compiler = Compiler()
    yield compiler
    compiler.end()


def case_of(name: str) -> object:
    """The parameter of a case."""
    return name if name in REPRESENTATIVES else pytest.param(name, marks=pytest.mark.ahead)


@pytest.mark.parametrize("case", [case_of(name) for name in LAUNCHES])
def test_compiled_as_claimed(case: str, compiler: Compiler) -> None:
    assert compiler.built(case), "It launches nothing."
    for built in compiler.built(case):
        assert "failed" not in built, built["failed"]
        claim = claim_of(built["kernel"], case)
        assert built["spilled"] <= claim.spilled, built
        assert built["shared"] <= SHARED[built["card"]] * 1024, built
        family = claim.tensor_cores.get(built["card"])
        assert family is None or family in built["tensor_cores"], built


def test_claims_name_cases_cards_and_families() -> None:
    for words, claim in CLAIMS.items():
        _, _, case = words.partition(" ")
        assert any(f"{name} ".startswith(f"{case} ".lstrip()) for name in LAUNCHES), words
        assert set(claim.tensor_cores) <= set(CARDS), words
        assert set(claim.tensor_cores.values()) <= set(TENSOR_CORES), words


def test_every_launching_function_has_a_representative() -> None:
    """The name of each case begins with that of the function."""
    assert {name.split()[0] for name in REPRESENTATIVES} == {name.split()[0] for name in LAUNCHES}
    assert set(LAUNCHES) >= REPRESENTATIVES


@pytest.mark.ahead
def test_claims_are_of_kernels_that_are_compiled(compiler: Compiler) -> None:
    compiled = {f"{one.get('kernel')} {case} " for case in LAUNCHES for one in compiler.built(case)}
    for words in CLAIMS:
        assert any(found.startswith(f"{words} ") for found in compiled), words
