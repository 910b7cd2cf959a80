"""What pyproject.toml depends on: bounded, used, free to use, and above versions with known weaknesses.

`make audit` asks a database for weaknesses of what is installed; here is what can be said without a network.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.served import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    extra: [found for text in texts if (found := Requirement(text)).name != PROJECT["name"]]
    for extra, texts in PROJECT["optional-dependencies"].items()
}
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
SHIPPED = [
    *NEEDED,
    *(found for extra in ("otel", "eval", "plot", "heic", "ui", "ray", "twin") for found in EXTRAS[extra]),
]
EVERY = [*NEEDED, *(found for extra in EXTRAS.values() for found in extra)]
MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "prometheus-client": "prometheus_client",
    "fastapi-offline": "fastapi_offline",
    "pillow-heif": "pillow_heif",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
}
"""Packages whose modules have other names."""
WEAK = {
    "torch": ("2.10", "CVE-2026-24747"),
    "pillow": ("12.3", "CVE-2026-25990, CVE-2026-40192, CVE-2026-42311, CVE-2026-55379"),
    "pillow-heif": ("1.3", "CVE-2026-28231"),
    "jinja2": ("3.1.6", "CVE-2025-27516"),
    "starlette": ("1.0.1", "CVE-2025-54121, CVE-2025-62727, CVE-2026-48710"),
    "h11": ("0.16", "CVE-2025-43859"),
    "gradio": ("6.7", "CVE-2026-28414, CVE-2026-28416"),
    "ray": ("2.54", "CVE-2025-62593, CVE-2026-27482"),
    "transformers": ("5.3", "CVE-2026-1839, CVE-2026-4372"),
}
"""The first versions without a weakness that is known."""
FREE = re.compile(r"Apache|MIT|BSD|ISC|PSF|Python Software Foundation|MPL-2\.0|Zlib|0BSD|CC0|BSL-1\.0|LLVM-exception")
"""Licences that let Apache-2.0 depend on what has them."""


def name_of(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def least(requirement: Requirement) -> Version:
    """The lowest version that a requirement admits."""
    (bound,) = [part for part in requirement.specifier if part.operator in (">=", "==")]
    return Version(bound.version)


@pytest.mark.parametrize("requirement", EVERY, ids=name_of)
def test_every_dependency_has_a_lowest_version(requirement: Requirement) -> None:
    assert least(requirement) > Version("0")
    assert requirement.url is None, "a package of an index, which an audit knows"


@pytest.mark.parametrize("name", WEAK)
def test_no_bound_admits_a_version_with_a_known_weakness(name: str) -> None:
    first, advisories = WEAK[name]
    bounds = [least(requirement) for requirement in EVERY if name_of(requirement) == name]
    assert bounds
    assert min(bounds) >= Version(first), advisories


@cache
def imported() -> frozenset[str]:
    """Modules that the package imports or looks for; not at collection, as reading all files takes seconds."""
    return frozenset(imports())


def imports() -> Iterator[str]:
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "find_spec":
                yield ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else ""


@pytest.mark.parametrize("requirement", SHIPPED, ids=name_of)
def test_every_dependency_is_imported(requirement: Requirement) -> None:
    module = MODULES.get(name_of(requirement), requirement.name)
    assert any(name == module or name.startswith(f"{module}.") for name in imported())


@pytest.mark.parametrize("requirement", SHIPPED, ids=name_of)
def test_every_dependency_is_free_to_use(requirement: Requirement) -> None:
    try:
        found = metadata(requirement.name)
    except PackageNotFoundError:
        pytest.skip("an extra that is not installed")
    classifiers = [text for text in found.get_all("Classifier") or [] if text.startswith("License ::")]
    stated = found.get("License-Expression") or " ".join([*classifiers, (found.get("License") or "")[:80]])
    parts = re.split(r" AND ", stated)
    assert all(FREE.search(part) for part in parts), stated
