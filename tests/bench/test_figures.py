"""Figures of answers that were worked out by hand."""

from __future__ import annotations

import pytest

from tilewise.bench.figures import Figures, Goals, ServerMetrics, peak_requests, peak_tokens, with_counts
from tilewise.bench.requests import Failure, RequestOutcome, TokenCounts
from tilewise.errors import InvalidConfig

# Sent at 0: a role at 0.1 s, content at 0.2, 0.3 and 0.6 s. Sent at 0.5: one token at 0.4 s.
LONG = RequestOutcome(
    0.0, 0.0, 0.1, (0.2, 0.3, 0.6), 0.6, "abc", TokenCounts(prompt=10, completion=5, image=16, tiles=1)
)
SHORT = RequestOutcome(0.5, 0.2, 0.4, (0.4,), 0.4, "d", TokenCounts(prompt=20, completion=1, image=32, tiles=2))
LOST = RequestOutcome(0.6, failure=Failure("connection lost", "reset", after=0.1))
ALL = [LONG, SHORT, LOST]


def figures(**more) -> Figures:
    return Figures.of(with_counts(ALL, [1, 2, 3], None), 2.0, (50.0, 99.0), **more)


def test_totals_and_rates():
    found = figures().as_json()
    assert (found["completed"], found["failed"], found["failures"]) == (2, 1, {"connection lost": 1})
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (30, 6)
    assert (found["request_throughput"], found["output_throughput"], found["total_token_throughput"]) == (
        1.0,
        3.0,
        18.0,
    )
    assert (found["total_image_tokens"], found["total_tiles"]) == (48, 3)


def test_the_first_token_is_the_first_that_shows_and_the_first_chunk_stands_beside():
    found = figures().as_json()
    assert found["mean_ttft_ms"] == pytest.approx(300)
    assert found["std_ttft_ms"] == pytest.approx(100)
    assert found["mean_first_chunk_ms"] == pytest.approx(250)
    assert found["p50_ttft_ms"] == found["median_ttft_ms"] == pytest.approx(300)
    assert found["p99_ttft_ms"] == pytest.approx(398)


def test_times_behind_the_first_token():
    found = figures().as_json()
    assert found["mean_tpot_ms"] == pytest.approx(100), "(600 - 200) / 4; a single token has none"
    assert found["mean_itl_ms"] == pytest.approx(200), "gaps of 100 and 300"
    assert found["mean_e2el_ms"] == pytest.approx(500)
    assert found["mean_client_queue_time_ms"] == pytest.approx(100)
    assert found["mean_e2el_including_client_queue_ms"] == pytest.approx(600)


def test_an_answer_with_nothing_to_see_counts_from_its_end():
    assert RequestOutcome(0.0, 0.0, 0.1, (), 0.7).first_content == 0.7


def test_tokens_are_the_servers_else_counted_here():
    silent = RequestOutcome(0.0, 0.0, 0.1, (0.1, 0.2), 0.2, "one two three")
    (counted,) = with_counts([silent], [7], lambda text: len(text.split()))
    assert (counted.tokens.prompt, counted.tokens.completion) == (7, 3)
    (chunks,) = with_counts([silent], [None], None)
    assert (chunks.tokens.prompt, chunks.tokens.completion) == (0, 2)
    assert with_counts([LONG, LOST], [1, 2], len) == [LONG, LOST], "what the server says, and no tokens of a failure"


def test_peaks():
    assert peak_tokens([LONG, SHORT]) == 6, "all within the first second"
    assert peak_requests([LONG, SHORT]) == 2
    behind = RequestOutcome(0.6, 0.0, 0.1, (0.1,), 0.1)
    assert peak_requests([LONG, behind]) == 1, "one ends as the other begins"
    assert peak_requests([]) == 0


def test_requests_that_fail_are_in_flight_until_they_have():
    slow = RequestOutcome(0.0, failure=Failure("HTTP 500", "", after=0.8))
    assert peak_requests([slow, LONG, SHORT]) == 3
    assert figures().max_concurrent_requests == 2, "the lost one began when the first had its last chunk"
    assert peak_requests([SHORT, RequestOutcome(0.6, failure=Failure("not sent", ""))]) == 1


@pytest.mark.parametrize(
    ("goals", "good"),
    [(["ttft:250"], 1), (["ttft:400"], 2), (["tpot:99"], 1), (["e2el:500", "ttft:400"], 1), (["e2el:399"], 0)],
)
def test_goodput_counts_answers_that_keep_every_goal(goals, good):
    assert figures(goals=Goals.read(goals)).request_goodput == good / 2


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["tftf:5"], "got 'tftf:5'. Did you mean ttft"),
        (["ttft"], "such as ttft:500, got 'ttft'"),
        (["tpot:-1"], "tpot:-1"),
    ],
)
def test_goals_that_mean_nothing_are_refused(pairs, message):
    with pytest.raises(InvalidConfig, match=message):
        Goals.read(pairs)


def test_nothing_answered_gives_zeros():
    found = Figures.of([LOST], 1.0, (99.0,)).as_json()
    assert found["completed"] == found["mean_ttft_ms"] == found["p99_itl_ms"] == 0


BEFORE = """\
# HELP tilewise:tiles_encoded_total Tiles
tilewise:tiles_encoded_total{engine="0"} 4.0
vllm:mm_preprocessing_total_latency_seconds_bucket{le="0.1"} 3.0
vllm:mm_preprocessing_total_latency_seconds_count{engine="0"} 1.0
vllm:mm_preprocessing_total_latency_seconds_sum{engine="0"} 9.0
"""
AFTER = """\
tilewise:tiles_encoded_total{engine="0"} 6.0
tilewise:tiles_encoded_total{engine="1"} 1.0
vllm:mm_preprocessing_total_latency_seconds_count{engine="0"} 3.0
vllm:mm_preprocessing_total_latency_seconds_sum{engine="0"} 9.5
vllm:spec_decode_num_drafts_total 4.0
vllm:spec_decode_num_draft_tokens_total 12.0
vllm:spec_decode_num_accepted_tokens_total 6.0
"""


def test_a_servers_metrics_are_what_they_grew_by():
    found = figures(server=ServerMetrics.between(BEFORE, AFTER)).as_json()
    assert found["tiles_encoded"] == 3
    assert found["mean_preprocess_ms"] == pytest.approx(250)
    assert found["mean_encode_ms"] is None
    assert found["spec_decode_acceptance_rate"] == 50
    assert found["spec_decode_acceptance_length"] == 2.5


def test_a_server_without_metrics_has_none():
    found = ServerMetrics.between("", "<html>not here</html>")
    assert (found.tiles_encoded, found.mean_preprocess_ms, found.drafts) == (None, None, 0)
