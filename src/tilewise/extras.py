"""Packages that few commands need. They are asked for before work begins that could not end without them."""

from __future__ import annotations

from importlib.util import find_spec

from tilewise.errors import InvalidConfig


def require_extra(package: str, extra: str, work: str) -> None:
    """Raise InvalidConfig, naming the extra that brings the package, if it is not there."""
    found = find_spec(package)
    if found is None or found.origin is None:  # a folder of that name, which Python takes for a package of no modules
        raise InvalidConfig(f"{work} needs {package}, which is an extra: pip install 'tilewise[{extra}]'.")
