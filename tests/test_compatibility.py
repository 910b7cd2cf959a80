"""docs/compatibility.md says what the tables say, and names every flag and variable of the guides."""

from __future__ import annotations

import pytest
from docs import api
from docs.compatibility import PAGE, page

from tests.cli.flags import commands
from tilewise.cli.flags.settings import FOREIGN, serve_flags


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make compatibility"


def test_the_page_of_the_api_is_current():
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run make compatibility"


def test_every_flag_is_named_once():
    rows = [line for line in page().splitlines() if line.startswith("| `--")]
    for flag in serve_flags():
        assert sum(row.startswith((f"| `{flag.dashed}`,", f"| `{flag.dashed}` |")) for row in rows) == 1, flag.name
    assert all(entry.says.replace("<", "&lt;") in page() for entry in FOREIGN)


@pytest.mark.parametrize("name", commands.ASCEND)
def test_every_variable_of_the_guides_is_named(name):
    assert f"| `{name}` |" in page()
