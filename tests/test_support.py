"""docs/support.md and the matrix of README.md name exactly the family; their numbers are of the last `make matrix`."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from docs.matrix import BEGIN, END, README, ROOT, SUPPORT, Results, matrix_in, readme_matrix, support_page

from tilewise.twin.specs import stand_ins
from tilewise.weights.family import GENERATIONS, MEMBERS

_NUMBER = re.compile(r"(?<=\| )(\d\.\de-\d\d|0\.0e\+00|\de-\d\d|equal|none|–)(?= \|)")


def without_numbers(text: str) -> str:
    """Every measured cell as one that was not, and without the versions that they were measured with."""
    return re.sub(r", with torch .*?\.\n", ".\n", _NUMBER.sub("–", text))


def test_the_page_of_support_is_that_of_the_family():
    page = SUPPORT.read_text(encoding="utf-8")
    assert without_numbers(page) == support_page(Results())
    named = dict.fromkeys(re.findall(r"^\| (InternVL\S+) \|", page, re.MULTILINE))
    assert list(named) == list(MEMBERS)


def test_the_matrix_of_the_readme_is_that_of_the_family():
    matrix = matrix_in(README.read_text(encoding="utf-8"))
    assert without_numbers(matrix) == readme_matrix(Results())
    rows = [line.strip("| ").split(" | ") for line in matrix.splitlines()]
    rows = [row for row in rows if row[0].removesuffix("-Flash") in {f"InternVL{found}" for found in GENERATIONS}]
    sizes = {(generation, size) for generation, _, several, *_ in rows for size in several.split(", ")}
    assert {f"{generation.removesuffix('-Flash').replace('.', '_')}-{size}" + "-Flash" * generation.endswith("-Flash")
            for generation, size in sizes} == MEMBERS.keys()  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """Two ops of one twin, one worse than the other."""
    row = {"model": "InternVL2-2B", "form": "original", "part": "logits, pictures", "tolerance": 1e-4, "largest": 3.0}
    rows = [{**row, "ops": "TorchOps", "worst": 2e-6}, {**row, "ops": "Ops", "worst": 7e-6}]
    bits = {**row, "form": "older hf, 3 shards", "part": "logits, as original", "tolerance": 0.0, "worst": 0.0}
    path = tmp_path / "parity.json"
    path.write_text(
        json.dumps({"versions": {"torch": "1", "transformers": "2"}, "rows": [*rows, {**bits, "ops": "x"}]})
    )
    return Results.read(path)


def test_a_cell_is_the_worst_of_all_ops_wherever_the_twin_stands_in(results):
    page = support_page(results)
    assert "with torch 1, transformers 2." in page
    stands_for = [name for name, twin in stand_ins().items() if twin == "InternVL2-2B"]
    assert len(stands_for) > 2
    for name in stands_for:
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} | original |"))
        assert "7.0e-06" in line
    assert "2.0e-06" not in page
    assert "| InternVL2_5-2B | `-MPO-hf` |" in page
    assert next(line for line in page.splitlines() if "| InternVL2_5-2B | `-MPO-hf`" in line).endswith("| equal |")


def test_the_rest_of_the_readme_stays(tmp_path):
    readme = f"before\n{BEGIN}\n| old |\n{END}\nafter\n"
    assert readme.replace(matrix_in(readme), "new") == "before\nnew\nafter\n"


def test_the_script_runs_as_make_runs_it():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "matrix.py", "/no/such.json"], capture_output=True, text=True
    )
    assert "FileNotFoundError" in done.stderr
