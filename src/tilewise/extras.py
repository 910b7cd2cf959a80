"""Packages that few verbs need. They are asked for before the work whose end would miss them."""

from __future__ import annotations

from importlib.util import find_spec

from tilewise.errors import InvalidConfig


def need(package: str, extra: str, work: str) -> None:
    """Raises InvalidConfig, naming the extra that brings the package, if it is not there."""
    if find_spec(package) is None:
        raise InvalidConfig(f"{work} needs {package}, which is an extra: pip install 'tilewise[{extra}]'.")
