"""The methods of quantisation together: what can be read can be asked for, and `tilewise inspect` knows it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import get_args

from tilewise.config import Quantization
from tilewise.weights import quantization


def test_every_method_has_a_name_that_can_be_asked_for() -> None:
    modules = [
        importlib.import_module(f"{quantization.__name__}.{one.name}")
        for one in pkgutil.iter_modules(quantization.__path__)
    ]
    methods = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    assert len(methods) >= 9
    assert all(set(method.names) & set(get_args(Quantization)) for method in methods), methods
