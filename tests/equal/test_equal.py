"""The contract: how a request is cut, batched, cached or preempted changes none of its tokens.

Float32 on the CPU: the same tokens, logits within 1e-5 (relative to logits of order one).
"""

from __future__ import annotations

import pytest
import torch

from tests.equal.contract import assert_same
from tests.equal.driver import Engine, prompt
from tests.tiny import SPECS, TWINS, write_original
from tilewise.platforms.ops import Ops

NAMES = ["qwen2-300m", "qwen3-6b-tied", "flash"]


@pytest.fixture(scope="module", params=NAMES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    return write_original(path, TWINS["InternVL3_5-1B-Flash"] if request.param == "flash" else SPECS[request.param])


def requests(**sampling):
    return [
        prompt("text", content=1, text=23, **sampling),
        prompt("picture", content=2, text=17, tiles=3, **sampling),
        prompt("pages", content=3, text=40, tiles=7, **sampling),
        prompt("short", content=4, text=3, **sampling),
    ]


@pytest.fixture(scope="module")
def alone(folder):
    """Every request by itself in an engine of its own size: the truth of the other tests."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for request in requests():
            found |= Engine(folder).run([request], patch)
    return found


def test_alone_equals_batched(folder, alone, monkeypatch):
    assert_same(Engine(folder).run(requests(), monkeypatch), alone)


@pytest.mark.parametrize("budget", [8, 13, 37])
def test_whole_equals_chunked(folder, alone, monkeypatch, budget):
    assert_same(Engine(folder, max_num_batched_tokens=budget).run(requests(), monkeypatch), alone)


@pytest.mark.parametrize("block_size", [1, 5, 64])
def test_block_size_changes_nothing(folder, alone, monkeypatch, block_size):
    changes = {"block_size": block_size, "num_blocks": 1 + 2048 // block_size}
    assert_same(Engine(folder, **changes).run(requests(), monkeypatch), alone)


def test_preempted_equals_undisturbed(folder, alone, monkeypatch):
    tight = Engine(folder, block_size=4, num_blocks=27)
    assert_same(tight.run(requests(), monkeypatch), alone)


@pytest.mark.parametrize("pages", [1, 4])
def test_tiles_apart_equal_tiles_together(folder, alone, monkeypatch, pages):
    assert_same(Engine(folder, tile_pages=pages).run(requests(), monkeypatch), alone)


def test_a_tile_met_again_equals_the_first_time(folder, alone, monkeypatch):
    twice = [prompt("picture", content=2, text=17, tiles=3), prompt("again", content=2, text=17, tiles=3)]
    found = Engine(folder).run(twice, monkeypatch)
    assert_same({"picture": found["again"]}, {"picture": alone["picture"]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eager_equals_graph(folder, monkeypatch, dtype):
    """Bit by bit: steps of one to four sequences, some beside a chunk of a prompt; then with what is cached.

    Within rounding where steps are filled up to a size, as products of more rows may round otherwise.
    """
    eager, replayed = (Engine(folder, dtype=dtype, graphs=on, max_num_batched_tokens=13) for on in (False, True))
    allowed = 1e-5 if replayed.limits.graph_sizes else 0.0
    assert_same(replayed.run(requests(), monkeypatch), eager.run(requests(), monkeypatch), allowed)
    assert_same(replayed.run_more(requests(), monkeypatch), eager.run_more(requests(), monkeypatch), allowed)


@pytest.mark.parametrize("changes", [{}, {"max_num_batched_tokens": 13}, {"block_size": 4, "num_blocks": 27}], ids=str)
def test_serial_equals_overlapped(folder, alone, monkeypatch, changes):
    """Whole, in chunks, and with sequences that are preempted while their token is on its way."""
    engine = Engine(folder, overlap=True, **changes)
    assert_same(engine.run(requests(), monkeypatch), alone)
    assert_same(engine.run_more(requests(), monkeypatch), alone)
    engine.core.close()


def test_cold_equals_cached(folder, alone, monkeypatch):
    """The same requests again, and what need not be computed of them is not."""
    engine = Engine(folder, block_size=4, num_blocks=513)
    assert_same(engine.run(requests(), monkeypatch), alone)
    assert set(engine.cached.values()) == {0}
    assert_same(engine.run_more(requests(), monkeypatch), alone)
    assert (engine.cached["text"], engine.cached["short"]) == (20, 0)
    assert engine.cached["picture"] >= 16
    assert engine.cached["pages"] >= 40


def test_pictures_of_equal_length_are_not_mistaken_for_one_another(folder, monkeypatch):
    one = prompt("a", content=2, text=17, tiles=3)
    other = prompt("a", content=2, text=17, tiles=3).with_(images=prompt("a", content=9, text=17, tiles=3).images)
    alone = Engine(folder).run([other], monkeypatch)
    engine = Engine(folder, block_size=4, num_blocks=513)
    engine.run([one], monkeypatch)
    assert_same(engine.run_more([other], monkeypatch), alone)


def test_reference_ops_equal_cpu_ops(folder, alone, monkeypatch):
    assert_same(Engine(folder, Ops()).run(requests(), monkeypatch), alone)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.3, "top_p": 0.95, "seed": 42, "repetition_penalty": 1.1},
        {"temperature": 1.9, "seed": 7, "logit_bias": {9: 3.0}, "frequency_penalty": 0.5, "logprobs": 3},
        {"top_k": 12, "min_p": 0.01, "seed": -8, "allowed_token_ids": [*range(5, 200)], "min_tokens": 4},
    ],
    ids=["top-p", "whole", "top-k"],
)
def test_seeded_sampling_does_not_depend_on_batch_or_chunks(folder, monkeypatch, params):
    expected = {}
    for request in requests(**params):
        expected |= Engine(folder).run([request], monkeypatch)
    chunked = Engine(folder, max_num_batched_tokens=11, block_size=4, num_blocks=60).run(
        requests(**params), monkeypatch
    )
    assert {name: tokens for name, (tokens, _) in chunked.items()} == {n: tokens for n, (tokens, _) in expected.items()}


def test_pictures_are_seen(folder, monkeypatch):
    """Guards the rest of this file: another picture, other logits."""
    one = Engine(folder).run([prompt("a", content=2, text=17, tiles=3)], monkeypatch)["a"][1]
    other = prompt("a", content=2, text=17, tiles=3)
    other = other.with_(images=prompt("a", content=9, text=17, tiles=3).images)
    assert (Engine(folder).run([other], monkeypatch)["a"][1][0] - one[0]).abs().max() > 1e-3
