"""Limits of media: their variables, and what a request may still take."""

from __future__ import annotations

import threading

import pytest

from tilewise.entrypoints.setup import media_reader
from tilewise.errors import Cancelled, InvalidConfig, InvalidMedia
from tilewise.inputs.media.limits import Deadline, MediaBudget, MediaLimits


def test_defaults_without_variables():
    assert MediaLimits.of({"PATH": "/"}) == MediaLimits()


def test_variables_set_limits():
    limits = MediaLimits.of(
        {
            "VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB": "3",
            "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES": "1000",
            "VLLM_IMAGE_FETCH_TIMEOUT": "2.5",
            "VLLM_MEDIA_FETCH_MAX_RETRIES": "0",
            "VLLM_MAX_VIDEO_DECODE_FRAMES": "7",
        }
    )
    assert (limits.request_bytes, limits.request_decoded_bytes) == (3 * 2**20, 1000)
    assert (limits.image_seconds, limits.retries, limits.video_frames) == (2.5, 0, 7)
    assert limits.video_seconds == MediaLimits().video_seconds


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *[("VLLM_IMAGE_FETCH_TIMEOUT", text) for text in ("0", "-1", "inf", "nan", "soon", "")],
        *[("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", text) for text in ("0", "1.5", "1e3", "256MB")],
        ("VLLM_MEDIA_FETCH_MAX_RETRIES", "-1"),
        ("TILEWISE_MAX_CHOSEN_FRAMES", "513"),
    ],
)
def test_a_variable_that_is_no_such_number_is_refused(variable, text):
    with pytest.raises(InvalidConfig, match=rf"{variable} must be a.* number of at least .*, found "):
        MediaLimits.of({variable: text})


def test_the_variables_reach_the_reader(monkeypatch):
    from tilewise.config import EngineConfig

    monkeypatch.setenv("VLLM_MAX_VIDEO_DECODE_FRAMES", "9")
    monkeypatch.setenv("TILEWISE_MAX_MEDIA_HANDLES_MB", "2")
    reader = media_reader(EngineConfig())
    assert reader.timed().budget.limits.video_frames == reader.budget.limits.video_frames == 9
    assert reader.handles.max_bytes == 2 * 2**20


def test_nothing_is_held_on_to_without_a_cache():
    from tilewise.config import EngineConfig

    assert media_reader(EngineConfig(mm_processor_cache_gb=0)).handles.max_bytes == 0


def test_bytes_add_up_to_the_limit_and_no_further():
    budget = MediaBudget(MediaLimits(request_bytes=10))
    budget.take_bytes(6)
    budget.take_bytes(4)
    with pytest.raises(
        InvalidMedia, match=r"have 11 bytes or more, the limit is 10.*raise VLLM_MAX_MEDIA_REQUEST_DOWN"
    ):
        budget.take_bytes(1)


def test_pixels_add_up_as_well():
    budget = MediaBudget(MediaLimits(request_decoded_bytes=10))
    budget.take_decoded(10)
    with pytest.raises(
        InvalidMedia, match=r"12 bytes of pixels or more, the limit is 10.*VLLM_MAX_MEDIA_REQUEST_DECODE"
    ):
        budget.take_decoded(2)


def test_an_event_of_the_caller_cancels():
    event = threading.Event()
    budget = MediaBudget(cancelled=event)
    budget.check()
    event.set()
    for step in (budget.check, lambda: budget.take_bytes(1), lambda: budget.take_decoded(1)):
        with pytest.raises(Cancelled):
            step()


def test_a_deadline_counts_down_and_then_names_itself():
    now = [0.0]
    budget = MediaBudget(MediaLimits(image_seconds=5))
    deadline = Deadline(budget, "image_seconds", "Fetching x", "use a faster host", lambda: now[0])
    now[0] = 4.0
    assert deadline.left() == 1.0
    now[0] = 5.0
    with pytest.raises(
        InvalidMedia, match=r"Fetching x takes longer than 5 s, the limit: use a faster host, or raise VLLM"
    ):
        deadline.left()


def test_a_pause_ends_when_nobody_waits():
    budget = MediaBudget(MediaLimits(image_seconds=600))
    deadline = Deadline(budget, "image_seconds", "", "")
    threading.Timer(0.05, budget.cancel).start()
    with pytest.raises(Cancelled):
        deadline.pause(600)
