"""Prompt lookup: what it finds, against a plain search."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.fake import request
from tilewise.engine.sequence import PromptLookup, SequenceState


def guess(ids, most=4, shortest=1, longest=3):
    lookup = PromptLookup(shortest, longest)
    lookup.take_in(ids)
    return lookup.guess(most)


def test_what_followed_the_same_end_before():
    assert guess([1, 2, 3, 4, 5, 6, 9, 1, 2]) == (3, 4, 5, 6)


def test_the_longest_end_wins_and_of_equals_the_latest():
    assert guess([1, 2, 7, 5, 2, 8, 5, 1, 2], most=1) == (7,)
    assert guess([2, 7, 2, 8, 2], most=1) == (8,)


def test_a_loop_fills_the_guess():
    assert guess([7, 7]) == (7, 7, 7, 7)
    assert guess([1, 2, 3, 1], most=5) == (2, 3, 1, 2, 3)


def test_nothing_known_nothing_guessed():
    assert guess([]) == guess([1]) == guess([1, 2, 3]) == ()
    assert guess([1, 2, 1], shortest=2) == ()


def test_no_sequence_of_tokens_reaches_over_an_image():
    assert guess([1, None, 2, 3, 1, None, 2]) == (3, 1)
    assert guess([1, None, 5, 1]) == ()


def plain_guess(ids, most, shortest, longest):
    """The definition: try each length, walk back."""
    for length in range(min(longest, len(ids) - 1), shortest - 1, -1):
        end = ids[-length:]
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == end and None not in [*end, ids[start + length]]:
                found, extended = [], list(ids)
                for place in range(start + length, start + length + most):
                    if extended[place] is None:
                        break
                    found.append(extended[place])
                    extended.append(extended[place])
                return tuple(found)
    return ()


@given(
    st.lists(st.sampled_from([1, 2, 3, None]), max_size=30),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 7),
)
def test_it_finds_what_a_plain_search_finds(ids, most, shortest, more, chunk):
    lookup = PromptLookup(shortest, shortest + more)
    for start in range(0, len(ids), chunk):
        lookup.take_in(ids[start : start + chunk])
        lookup.guess(most)
    assert lookup.guess(most) == plain_guess(ids, most, shortest, shortest + more)


def test_a_sequence_shows_its_text_alone():
    """Tiles in the middle of a prompt: what is beside them is looked up, they are not."""
    item = request("a", tiles=(1, 2), text=3)  # 1, 8 image tokens, 3 4 5
    sequence = SequenceState.of(item, tokens_per_tile=4, max_model_len=64)
    sequence.lookup = PromptLookup(1, 2)
    sequence.output_ids = [8, 9, 3]
    assert sequence.guess(4) == (4, 5, 8, 9)
    assert len(sequence.lookup) == len(item.prompt_ids) + 3
    sequence.output_ids += [2]  # the id of image tokens, which are not looked up
    assert sequence.guess(4) == ()
