"""The request that is planned for, counted by hand."""

from __future__ import annotations

import pytest

from tilewise.errors import InvalidConfig
from tilewise.plan.request import RequestShape


def test_tokens_are_text_tiles_marks_and_answer():
    shape = RequestShape(prompt_tokens=100, pictures=2, tiles=13, answer_tokens=50)
    assert shape.prompt(256) == 100 + 2 * (13 * 256 + 2)
    assert shape.tokens(256) == shape.prompt(256) + 50


def test_pictures_take_what_text_and_answer_leave():
    shape = RequestShape(prompt_tokens=100, tiles=1, answer_tokens=50)
    assert shape.most_pictures(150 + 3 * 258, 256, None) == 3
    assert shape.most_pictures(150 + 3 * 258 - 1, 256, None) == 2
    assert shape.most_pictures(150 + 3 * 258, 256, 2) == 2
    assert shape.most_pictures(10, 256, None) == 0


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"pictures": -1}, {"tiles": 0}, {"answer_tokens": 0}])
def test_what_no_request_has_is_refused(wrong):
    with pytest.raises(InvalidConfig, match=next(iter(wrong))):
        RequestShape(**wrong)


def test_more_pictures_than_are_allowed_are_refused():
    with pytest.raises(InvalidConfig, match="--pictures 3 is more than the 2"):
        RequestShape(pictures=3).check_limit({"image": 2})
    RequestShape(pictures=2).check_limit({"image": 2})
