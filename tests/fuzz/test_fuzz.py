"""Each target of `make fuzz` with a few hundred inputs, the same ones each time."""

from __future__ import annotations

import pytest

from tests.fuzz.all_targets import TARGETS


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it mends
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_target_finds_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", "tilewise")
    TARGETS[name].try_some()
