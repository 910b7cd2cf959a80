"""Guessing ahead changes no token: draft = no draft, whoever guesses, whatever else happens to a request."""

from __future__ import annotations

from functools import cache

import pytest

from tests.equal.contract import assert_same
from tests.equal.driver import Engine, prompt
from tests.equal.test_structured import GRAMMARS
from tests.guesses import drafting, lookup
from tests.tiny import END_IDS, SPECS, TWINS, write_original
from tilewise.sampling_params import StructuredOutputsParams

LOOKUP = lookup(3, 1, 3)
DRAFTING = drafting(3)
CHANGES = [
    {},
    {"max_num_batched_tokens": 13},
    {"block_size": 4, "num_blocks": 31},
    {"overlap": True},
    {"tile_pages": 1, "block_size": 5, "num_blocks": 400},
]


NAMES = ["qwen2-300m", "gptoss-300m-head", "flash"]
MET = [
    pytest.param(name, changes, id=f"{name}-{changes}")
    for place, name in enumerate(NAMES)
    for number, changes in enumerate(CHANGES)
    if place == 0 or number % 2 == place - 1
]
"""The first model meets all changes, and the others half of them each."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders by the names of their models, each written once."""

    @cache
    def write(name):
        return write_original(
            tmp_path_factory.mktemp(name), TWINS["InternVL3_5-1B-Flash"] if name == "flash" else SPECS[name]
        )

    return write


@pytest.fixture(params=NAMES)
def folder(request, written):
    return written(request.param)


def requests(**sampling):
    """Long enough answers for tiny models to repeat themselves."""
    sampling = {"max_tokens": 40, **sampling}
    return [
        prompt("text", content=1, text=23, **sampling),
        prompt("picture", content=2, text=17, tiles=3, **sampling),
        prompt("pages", content=3, text=40, tiles=7, **sampling),
        prompt("short", content=4, text=3, **{**sampling, "max_tokens": 5}),
    ]


DRAWN = {"temperature": 0.4, "seed": 3, "top_p": 0.9, "repetition_penalty": 1.05, "logprobs": 2, "min_tokens": 4}


@cache
def answered(folder):
    """What is answered without guessing: greedy and drawn.

    Not a fixture of the module, which would be made anew for each row of MET.
    """
    with pytest.MonkeyPatch.context() as patch:
        engine = Engine(folder)
        return {"greedy": engine.run(requests(), patch), "drawn": engine.run(requests(**DRAWN), patch)}


@pytest.fixture
def plain(folder):
    return answered(folder)


@pytest.mark.parametrize(("folder", "changes"), MET, indirect=["folder"])
def test_a_lookup_changes_nothing(folder, plain, monkeypatch, changes):
    engine = Engine(folder, speculation=LOOKUP, **changes)
    assert_same(engine.run(requests(), monkeypatch), plain["greedy"])
    assert_same(engine.run_more(requests(**DRAWN), monkeypatch), plain["drawn"])
    assert engine.core.counters.accepted_tokens > 0
    engine.core.close()


@pytest.mark.parametrize(("folder", "changes"), MET, indirect=["folder"])
def test_a_draft_model_that_knows_nothing_changes_nothing(folder, plain, monkeypatch, tmp_path, changes):
    other = write_original(tmp_path, spec_of(folder), seed=77)
    engine = Engine(folder, draft=other, speculation=DRAFTING, **changes)
    assert_same(engine.run(requests(), monkeypatch), plain["greedy"])
    assert_same(engine.run_more(requests(**DRAWN), monkeypatch), plain["drawn"])
    assert engine.core.counters.accepted_tokens < engine.core.counters.draft_tokens
    engine.core.close()


@pytest.mark.parametrize(("folder", "changes"), MET, indirect=["folder"])
def test_a_draft_model_that_is_the_model_is_always_right(folder, plain, monkeypatch, changes):
    """So its keys, values and tiles are those of the same tokens; also behind prefixes that are known."""
    engine = Engine(folder, draft=folder, speculation=DRAFTING, **changes)
    assert_same(engine.run(requests(), monkeypatch), plain["greedy"])
    assert_same(engine.run_more(requests(**DRAWN), monkeypatch), plain["drawn"])
    counters = engine.core.counters
    assert counters.accepted_tokens == counters.draft_tokens > 0
    engine.core.close()


@pytest.mark.parametrize("speculation", [LOOKUP, DRAFTING], ids=["lookup", "draft model"])
def test_structured_answers_stay_in_form(folder, monkeypatch, speculation):
    """A lookup's guesses are held against the form; a draft model does not guess in one."""
    form = StructuredOutputsParams(regex="(ab|ba|a){20,25}!")
    grammar = GRAMMARS.compile(form)

    def asked():
        return [
            one.with_(grammar=grammar, stop_ids=frozenset(END_IDS)) for one in requests(temperature=0.7, seed=5)[:3]
        ]

    expected = Engine(folder).run(asked(), monkeypatch)
    engine = Engine(folder, draft=None if speculation.ngram else folder, speculation=speculation)
    assert_same(engine.run(asked(), monkeypatch), expected)
    assert (engine.core.counters.accepted_tokens > 0) is (speculation.ngram is not None)


def spec_of(folder):
    name = folder.name.rstrip("0123456789")
    return TWINS["InternVL3_5-1B-Flash"] if name == "flash" else SPECS[name]


def test_the_same_noise_makes_similar_models_agree(tmp_path, monkeypatch):
    """Drawn at temperature 1, a draft model a little off is right far more often than independent draws."""
    folder = write_original(tmp_path / "model", SPECS["qwen2-300m"])
    monkeypatch.setenv("TILEWISE_CPU_KERNELS", "0")  # so that matrices are kept as they came
    engine = Engine(folder, draft=folder, speculation=DRAFTING)
    for block in engine.draft.decoder._blocks:
        block._mlp._down._weight.matrix.mul_(1.02)
    answers = engine.run(requests(temperature=1.0, seed=9), monkeypatch)
    chance = max(float((logits.softmax(-1) ** 2).sum(-1).mean()) for _, logits in answers.values())
    rate = engine.core.counters.accepted_at[0] / engine.core.counters.drafts
    assert rate > 0.5 > 2 * chance
