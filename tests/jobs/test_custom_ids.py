"""Every repeated custom_id is found, with the line of its first use, in little memory."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from tilewise.jobs.source import CustomIds


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh\ud800"), st.text(max_size=2))))
def test_as_a_dict_has_it(names):
    found, first = CustomIds(), {}
    for number, name in enumerate(names, 1):
        if name is not None:
            assert found.first_use(name, number) == first.get(name)
            first.setdefault(name, number)


def test_many_in_few_bytes():
    count = 50_000
    tracemalloc.start()
    found = CustomIds()
    assert all(found.first_use(f"id-{number}", number) is None for number in range(1, count + 1))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 32 * count
    assert all(found.first_use(f"id-{number}", count + 1) == number for number in range(1, count + 1))
