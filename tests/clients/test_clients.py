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
ENVIRONMENT = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OPENAI_API_KEY": "none",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1",
}
"""Without plugins that clients bring, and without what clients look up or report elsewhere."""
pytestmark = pytest.mark.clients


def program(client: str) -> Path:
    return PROGRAMS / f"with_{client}.py"


def cases_of(client: str) -> list[str]:
    tree = ast.parse(program(client).read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def run(client: str, url: str, folder: Path) -> dict[str, list[str]]:
    """What each test of the client's program printed when it failed, by name; a parametrised one may fail often."""
    report = folder / f"{client}.xml"
    command = [environments.python(client), "-m", "pytest", "-q", "--tb=short", "-c", os.devnull, program(client)]
    command += ["--rootdir", PROGRAMS, "--confcutdir", PROGRAMS, "--import-mode=importlib", "--junitxml", report]
    command += ["-p", "no:cacheprovider", "-p", "no:warnings"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment |= ENVIRONMENT | {"TILEWISE_URL": url}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if not report.exists():
        pytest.fail(ended.stdout + ended.stderr, pytrace=False)
    failed: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        printed = failed.setdefault(case.get("name", "").partition("[")[0], [])
        if len(case):
            printed.append("\n".join((case.get("name", ""), *case.itertext())))
    return failed


@pytest.fixture(scope="session")
def results() -> dict[str, dict[str, list[str]]]:
    """By client, filled by the first test of each."""
    return {}


def test_every_client_has_a_program():
    assert {path.stem.removeprefix("with_") for path in PROGRAMS.glob("with_*.py")} == set(environments.CLIENTS)


@pytest.mark.parametrize(("client", "name"), [(each, name) for each in environments.CLIENTS for name in cases_of(each)])
def test_client(client, name, results, demo_url, tmp_path_factory):
    if (why := environments.failure(client)) is not None:
        pytest.fail(f"{client} is not installed: {why}", pytrace=False)
    if client not in results:
        results[client] = run(client, demo_url, tmp_path_factory.mktemp(client))
    if failed := results[client][name]:
        pytest.fail("\n\n".join(failed), pytrace=False)
