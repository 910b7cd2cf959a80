"""The contract, for pictures that come encoded: rows of our own tower are the picture, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.equal.contract import assert_same
from tests.equal.driver import Engine, prompt
from tests.tiny import SPECS, write_original
from tilewise.inputs.media.arrays import rows_digest
from tilewise.types import Request, Tile, TileRows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def engine(folder, request):
    # Rows that came are there at once, those of pictures one behind the other: prompts are cut into other chunks.
    return Engine(folder, dtype=request.param, batch_invariant=True)


def encoded(engine: Engine, request: Request, which: slice = slice(None)) -> Request:
    """The request with its tiles, or some of them, as rows."""

    def rows(tile: Tile) -> TileRows:
        with torch.inference_mode():
            found = engine.model.encoder(torch.from_numpy(tile.pixels)[None].to(engine.platform.device)).rows[0].cpu()
        array = (found.view(torch.uint16) if found.dtype == torch.bfloat16 else found).numpy()
        return TileRows(rows_digest(array), array)

    def image(picture):
        tiles = list(picture.tiles)
        tiles[which] = [rows(tile) for tile in tiles[which]]
        return replace(picture, tiles=tuple(tiles))

    return replace(request, images=tuple(map(image, request.images)))


def requests() -> list[Request]:
    return [
        prompt("text", content=1, text=23),
        prompt("picture", content=2, text=17, tiles=3),
        prompt("pages", content=3, text=40, tiles=7),
        prompt("same", content=2, text=19, tiles=3),
    ]


def again(engine: Engine, changed: list[Request], monkeypatch, **limits):
    engine.limits = replace(engine.limits, **limits)
    return engine.run(changed, monkeypatch)


def test_rows_are_the_picture_to_the_bit(engine, monkeypatch):
    expected = engine.run(requests(), monkeypatch)
    assert_same(engine.run([encoded(engine, one) for one in requests()], monkeypatch), expected, tolerance=0)
    assert engine.core.counters.tiles_encoded == 0


def test_tiles_of_both_kinds_in_one_prompt(engine, monkeypatch):
    expected = engine.run(requests(), monkeypatch)
    mixed = [encoded(engine, one, slice(1, None, 2)) for one in requests()]
    assert_same(engine.run(mixed, monkeypatch), expected, tolerance=0)
    assert engine.core.counters.tiles_encoded == 2 + 4  # the others of "picture", which is "same" too, and "pages"


@pytest.mark.parametrize(
    "limits",
    [
        {"max_num_batched_tokens": 9},
        {"num_blocks": 9, "max_num_seqs": 3},
        {"tile_pages": 7},
        {"prefix_caching": False},
    ],
    ids=["chunks", "preempted", "few pages", "no prefixes"],
)
def test_rows_under_pressure(folder, monkeypatch, limits):
    engine = Engine(folder, tile_batches=(1,))
    expected = engine.run(requests(), monkeypatch)
    changed = [encoded(engine, one) for one in requests()]
    assert_same(again(engine, changed, monkeypatch, **limits), expected)
    assert engine.core.counters.tiles_encoded == 0


def test_overlapped(folder, monkeypatch):
    engine = Engine(folder, tile_batches=(1,), overlap=True)
    expected = engine.run(requests(), monkeypatch)
    assert_same(engine.run([encoded(engine, one) for one in requests()], monkeypatch), expected)


def test_a_prefix_is_shared_with_the_same_rows_alone(folder, monkeypatch):
    engine = Engine(folder, tile_batches=(1,))
    (first,) = [encoded(engine, prompt("first", content=3, text=40, tiles=7))]
    expected = engine.run([first], monkeypatch)["first"]
    found = engine.run_more([replace(first, id="again")], monkeypatch)["again"]
    assert found[0] == expected[0]
    assert engine.cached["again"] > 4 * 7
    other = replace(first.images[0].tiles[6], rows=-first.images[0].tiles[6].rows)
    other = replace(other, digest=rows_digest(other.rows))
    tiles = (*first.images[0].tiles[:6], other)
    engine.run_more([replace(first, id="other", images=(replace(first.images[0], tiles=tiles),))], monkeypatch)
    assert engine.cached["other"] <= 2 + 4 * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [65504.0, -65504.0, 1e-30])
def test_extreme_rows_reach_nobody_else(folder, monkeypatch, dtype, value):
    """CVE-2025-62372 and its kind: what is computed of them may be no number, and leaves nothing behind."""
    engine = Engine(folder, dtype=dtype, num_blocks=17, tile_batches=(1,))
    expected = engine.run(requests()[:2], monkeypatch)
    engine.run([], monkeypatch)
    hostile = encoded(engine, prompt("hostile", content=9, text=60, tiles=7))
    rows = torch.full((4, engine.config.decoder.hidden_size), value).numpy()
    tiles = tuple(TileRows(rows_digest(rows), rows) for _ in range(7))
    hostile = replace(hostile, images=(replace(hostile.images[0], tiles=tiles),))
    engine.run_more([hostile], monkeypatch)
    found = engine.run_more([replace(one, cache_salt="mine") for one in requests()[:2]], monkeypatch)
    assert_same(found, expected, tolerance=0)
    assert_same(engine.run([*requests()[:2], hostile], monkeypatch) | {"hostile": found["text"]},
                expected | {"hostile": found["text"]}, tolerance=1e-5 if dtype == torch.float32 else 0.1)  # fmt: skip
