"""Other projects' clients, unchanged, against a real server: each program of `programs` in its client's environment."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.clients import environments

PROGRAMS = Path(__file__).parent / "programs"
pytestmark = pytest.mark.clients


def program(client: str) -> Path:
    return PROGRAMS / f"with_{client}.py"


def tests_of(client: str) -> list[str]:
    tree = ast.parse(program(client).read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def run(client: str, url: str, folder: Path) -> dict[str, str]:
    """What each test of the client's program printed when it failed, empty for one that passed."""
    report = folder / f"{client}.xml"
    command = [environments.python(client), "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", PROGRAMS, "--confcutdir", PROGRAMS]
    command += ["--import-mode", "importlib", "-p", "no:cacheprovider", "--junitxml", report, program(client)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment |= {"TILEWISE_URL": url, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if not report.exists():
        pytest.fail(ended.stdout + ended.stderr, pytrace=False)
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {case.get("name", ""): "\n".join(case.itertext()) if len(case) else "" for case in cases}


@pytest.fixture(scope="session")
def results() -> dict[str, dict[str, str]]:
    """By client, filled by the first test of each."""
    return {}


def test_every_client_has_a_program():
    assert {path.stem.removeprefix("with_") for path in PROGRAMS.glob("with_*.py")} == set(environments.CLIENTS)


@pytest.mark.parametrize(("client", "name"), [(each, name) for each in environments.CLIENTS for name in tests_of(each)])
def test_client(client, name, results, demo_url, tmp_path_factory):
    if (why := environments.failure(client)) is not None:
        pytest.fail(f"{client} is not installed: {why}", pytrace=False)
    if client not in results:
        results[client] = run(client, demo_url, tmp_path_factory.mktemp(client))
    if failed := results[client][name]:
        pytest.fail(failed, pytrace=False)
