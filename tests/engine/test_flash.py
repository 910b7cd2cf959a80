"""The router's scores as the engine remembers them."""

from __future__ import annotations

from tilewise.engine import tiles as tiles_module
from tilewise.engine.tiles import TileScores
from tilewise.step import EncodedTile


def test_the_first_score_of_a_tile_stays():
    """Another batch may round otherwise; the choice for a picture must not change with it."""
    scores = TileScores()
    scores.learn([EncodedTile(b"a", 0.5), EncodedTile(b"b", 0.25)])
    scores.learn([EncodedTile(b"a", 0.5000001)])
    assert scores.of([b"b", b"a", b"a"]) == [0.25, 0.5, 0.5]


def test_an_unknown_tile_leaves_the_request_waiting():
    scores = TileScores()
    scores.learn([EncodedTile(b"a", 0.5), EncodedTile(b"no router")])
    assert scores.of([b"a", b"b"]) is None
    assert b"no router" not in scores


def test_a_score_that_is_asked_for_outlives_others(monkeypatch):
    """Its tile may have a page, and is not encoded and scored again as long as that is so."""
    monkeypatch.setattr(tiles_module, "_REMEMBERED", 2)
    scores = TileScores()
    for n in range(4):
        scores.learn([EncodedTile(bytes([n]), n / 8)])
        assert scores.of([b"\0"]) == [0.0]
    assert [bytes([n]) in scores for n in range(4)] == [True, False, False, True]


def test_the_oldest_scores_are_forgotten(monkeypatch):
    monkeypatch.setattr(tiles_module, "_REMEMBERED", 2)
    scores = TileScores()
    scores.learn([EncodedTile(bytes([n]), n / 8) for n in range(4)])
    assert [bytes([n]) in scores for n in range(4)] == [False, False, True, True]
