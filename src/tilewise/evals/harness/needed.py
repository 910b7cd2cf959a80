"""Packages that evaluation alone needs, asked for by the name of the extra that brings them."""

from __future__ import annotations

from importlib.util import find_spec

from tilewise.errors import InvalidConfig


def need_lm_eval() -> None:
    """Raises InvalidConfig without lm_eval."""
    if find_spec("lm_eval") is None:
        raise InvalidConfig("This needs lm_eval, which is an extra: pip install 'tilewise[eval]'.")


def need_matplotlib() -> None:
    """Raises InvalidConfig without matplotlib."""
    if find_spec("matplotlib") is None:
        raise InvalidConfig("A picture of the results needs matplotlib, an extra: pip install 'tilewise[plot]'.")
