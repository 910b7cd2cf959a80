"""Without the wheels' files (`make build/torch-npu`) there is nothing to check calls against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.platforms.ascend import device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not device.FETCHED:
        for item in items:
            if "platforms/ascend" in str(item.path):
                item.add_marker(pytest.mark.skip("torch_npu's schemas are not here: make build/torch-npu fetches them"))


@pytest.fixture
def strict() -> Iterator[None]:
    with device.strict():
        yield
