from __future__ import annotations

import pytest

from tilewise.errors import InvalidConfig
from tilewise.extras import need


def test_an_extra_is_named_by_what_brings_it():
    need("json", "never", "Reading")
    with pytest.raises(InvalidConfig, match=r"^Drawing needs no_such_package, .* pip install 'tilewise\[plot\]'\.$"):
        need("no_such_package", "plot", "Drawing")
