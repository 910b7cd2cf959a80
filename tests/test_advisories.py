"""docs/advisories.md: every row names tests that are there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.served import ROOT

PAGE = ROOT / "docs" / "advisories.md"
HEAD = "| advisory | what was wrong there | here | test |"
ROWS = [
    line.strip("|").split(" | ")
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and line != HEAD
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_every_row_names_tests_that_are_there(row: list[str]) -> None:
    assert len(row) == 4
    places = re.findall(r"`([^`]+)`", row[3])
    assert places
    for place in places:
        file, _, name = place.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert not name or name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_number_that_a_test_names_is_in_the_table() -> None:
    named = re.compile(r"CVE-\d{4}-\d+")
    listed = set(named.findall(PAGE.read_text(encoding="utf-8")))
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    assert {number for file in files for number in named.findall(file.read_text(encoding="utf-8"))} <= listed
