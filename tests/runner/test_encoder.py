"""Encoder lane: batches of the sizes that the limits name."""

from __future__ import annotations

import numpy as np
import pytest

from tilewise.runner.encoder import batches
from tilewise.step import EncodeJob


@pytest.mark.parametrize("count", range(40))
@pytest.mark.parametrize("sizes", [(16, 8, 4, 2, 1), (2, 1), (1,)])
def test_jobs_are_cut_into_batches_in_order(count, sizes):
    jobs = [EncodeJob(bytes([n]), np.zeros((1, 1, 3), np.uint8), n) for n in range(count)]
    found = list(batches(jobs, sizes))
    assert [job for batch in found for job in batch] == jobs
    assert all(len(batch) in sizes for batch in found)


def test_thirteen_tiles_make_as_few_batches_as_can_be():
    jobs = [EncodeJob(b"", np.zeros((1, 1, 3), np.uint8), n) for n in range(13)]
    assert [len(batch) for batch in batches(jobs, (16, 8, 4, 2, 1))] == [8, 4, 1]
    assert [len(batch) for batch in batches(jobs, (2, 1))] == [2] * 6 + [1]
