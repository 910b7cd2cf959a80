"""Errors as they travel between processes."""

from __future__ import annotations

import pickle

import pytest

from tilewise import errors
from tilewise.errors import InvalidField, NotFinite, TilewiseError, TooLong


def kinds(of: type[TilewiseError] = TilewiseError) -> list[type[TilewiseError]]:
    return [
        of,
        *(kind for child in of.__subclasses__() for kind in kinds(child) if child.__module__ == errors.__name__),
    ]


def made(kind: type[TilewiseError]) -> TilewiseError:
    if kind is TooLong:
        return TooLong("too long", prompt_tokens=9, limit=8, output_tokens=3)
    if kind is NotFinite:
        return NotFinite("tower", "wrong")
    return InvalidField("field", "wrong") if kind is InvalidField else kind("wrong")


@pytest.mark.parametrize("kind", kinds())
def test_an_error_arrives_as_it_left(kind):
    error = made(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert again.http_status == error.http_status
