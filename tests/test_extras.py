from __future__ import annotations

import pytest

from tilewise.errors import InvalidConfig
from tilewise.extras import require_extra


def test_an_extra_is_named_by_what_brings_it():
    require_extra("json", "never", "Reading")
    with pytest.raises(InvalidConfig, match=r"^Drawing needs no_such_package, .* pip install 'tilewise\[plot\]'\.$"):
        require_extra("no_such_package", "plot", "Drawing")
