"""docs/compatibility.md says what the tables say, and names every flag and variable of the guides."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs import api
from docs.compatibility import PAGE, page

import tilewise
from tests.cli.flags import commands
from tilewise.cli.flags.table import FOREIGN, serve_flags
from tilewise.cli.flags.variables import VARIABLES


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make compatibility"


def test_the_page_of_the_api_is_current():
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run make compatibility"


def test_every_flag_is_named_once():
    rows = [line for line in page().splitlines() if line.startswith("| `--")]
    for flag in serve_flags():
        assert sum(row.startswith((f"| `{flag.dashed}`,", f"| `{flag.dashed}` |")) for row in rows) == 1, flag.name
    assert all(entry.says.replace("<", "&lt;") in page() for entry in FOREIGN)


EVERYWHERE = {"PATH", "PYTHONPATH"}
"""What these do is no matter of ours."""
ENVIRONMENT = ("os.environ", "environment")
BY_NAME = {
    "cli/flags/table.py": 2,  # of OPTIONS in variables.py
    "inputs/media/limits.py": 1,  # of the limits
    "inputs/media/connection.py": 2,  # of the variables of proxies
    "server/information.py": 1,  # of all that are shown
    "units.py": 1,  # of whole_variable
    "weights/hubs/repository.py": 2,  # of endpoint, and of a tuple
}
"""Where variables are read whose name is not beside it, and how often."""


def test_every_variable_that_is_read_is_in_the_table():
    """And every text that looks like the name of one."""
    listed = {entry.name for entry in VARIABLES if entry.fate in ("honoured", "own")}
    root, found, by_name = Path(tilewise.__file__).parent, set(), Counter[str]()
    for path in root.rglob("*.py"):
        place = path.relative_to(root).as_posix()
        for key in read_from_environment(ast.parse(path.read_text(encoding="utf-8"))):
            if key is None:
                by_name[place] += 1
            else:
                found.add(key)
        if place != "cli/flags/variables.py":
            found |= set(_NAME.findall(path.read_text(encoding="utf-8")))
    assert {"VLLM_USE_MODELSCOPE", "VLLM_MAX_N_SEQUENCES", "HF_ENDPOINT", "TERM"} <= found
    assert found - listed == EVERYWHERE, "say in cli/flags/variables.py what becomes of it"
    assert by_name == BY_NAME


_NAME = re.compile(r'"((?:VLLM|TILEWISE|HF|TRANSFORMERS|MODELSCOPE|OTEL|XDG|OMP)_[A-Z0-9_]+)"')


def read_from_environment(tree: ast.AST) -> Iterator[str | None]:
    """The name of each variable; None where that is worked out."""
    for node in ast.walk(tree):
        key: ast.expr | None = None
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
            if node.func.attr == "getenv" or (node.func.attr == "get" and ast.unparse(node.func.value) in ENVIRONMENT):
                key = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in ENVIRONMENT:
            key = node.slice
        if key is not None:
            yield key.value if isinstance(key, ast.Constant) else None


@pytest.mark.parametrize("name", commands.ASCEND)
def test_every_variable_of_the_guides_is_named(name):
    assert f"| `{name}` |" in page()
