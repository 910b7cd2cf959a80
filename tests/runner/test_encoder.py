"""Encoder lane: fixed batch sizes."""

from __future__ import annotations

import numpy as np
import pytest

from tilewise.runner.encoder import BUCKETS, ONE_BY_ONE, buckets
from tilewise.step import EncodeJob


@pytest.mark.parametrize("count", range(40))
def test_jobs_are_cut_into_buckets_in_order(count):
    jobs = [EncodeJob(bytes([n]), np.zeros((1, 1, 3), np.uint8), n) for n in range(count)]
    batches = list(buckets(jobs))
    assert [job for batch in batches for job in batch] == jobs
    assert all(len(batch) in BUCKETS for batch in batches)


def test_thirteen_tiles_make_three_batches():
    jobs = [EncodeJob(b"", np.zeros((1, 1, 3), np.uint8), n) for n in range(13)]
    assert [len(batch) for batch in buckets(jobs)] == [8, 4, 1]
    assert [len(batch) for batch in buckets(jobs, ONE_BY_ONE)] == [1] * 13
