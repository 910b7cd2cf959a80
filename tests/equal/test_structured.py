"""Structured answers of random models: whole and fulfilled, however requests are cut, batched, cached or preempted."""

from __future__ import annotations

import json
import re
from functools import cache

import jsonschema
import pytest
import torch

from tests.equal.driver import Engine, prompt
from tests.inputs.walks import CHOICES, GBNF, PATTERNS, SCHEMAS
from tests.tiny import END_IDS, SPECS, write_original
from tests.tiny import tokenizer as tiny_tokenizer
from tilewise.inputs.grammar import Grammars
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.runner.runner import LocalRunner
from tilewise.sampling_params import StructuredOutputsParams
from tilewise.step import Admission
from tilewise.types import Request

TOKENIZER = Tokenizer(tiny_tokenizer().to_str())
GRAMMARS = Grammars(TOKENIZER, END_IDS)
FORMS = {
    **{
        f"json-{name}": StructuredOutputsParams(json=schema, whitespace_pattern=" ") for name, schema in SCHEMAS.items()
    },
    **{f"regex-{number}": StructuredOutputsParams(regex=pattern) for number, pattern in enumerate(PATTERNS)},
    "choice": StructuredOutputsParams(choice=CHOICES),
    "grammar": StructuredOutputsParams(grammar=GBNF),
    "free": None,
}


@pytest.fixture(scope="module", params=["qwen2-300m", "qwen3-6b-tied"])
def folder(request, tmp_path_factory):
    return write_original(tmp_path_factory.mktemp(request.param), SPECS[request.param])


def requests(content: int, **sampling) -> list[Request]:
    """One of every form, with pictures for some, and one of none; `content` numbers the prompts, up to 240."""
    made = []
    for place, (name, form) in enumerate(FORMS.items()):
        options = {"max_tokens": 24 if form is None else 200, **sampling}
        request = prompt(name, content + place, text=9, tiles=place % 3, **options)
        grammar = GRAMMARS.compile(form) if form else None
        made.append(request.with_(grammar=grammar, stop_ids=frozenset(END_IDS)))
    return made


def check(name: str, text: str) -> None:
    form = FORMS[name]
    if form is None:
        return
    if form.json is not None:
        jsonschema.validate(json.loads(text), form.json)
    elif form.regex is not None:
        assert re.fullmatch(form.regex, text), text
    elif form.choice is not None:
        assert text in form.choice
    else:
        assert re.fullmatch("SELECT [名b](, [名b])? FROM [a-z]{2}", text), text


def tokens_of(answers) -> dict[str, list[int]]:
    return {name: tokens for name, (tokens, _) in answers.items()}


def test_random_models_answer_in_form(folder, monkeypatch):
    """The folders are of models that know nothing; tokens are chosen greedily, and drawn."""
    engine = Engine(folder)
    texts = set()
    for round_ in range(6):
        temperature = round_ % 3 / 2
        for name, tokens in tokens_of(
            engine.run(requests(10 * round_, temperature=temperature, seed=round_), monkeypatch)
        ).items():
            if FORMS[name] is not None:
                assert tokens[-1] in END_IDS, (name, TOKENIZER.decode(tokens))
            text = TOKENIZER.decode(tokens)
            check(name, text)
            texts.add(text)
    assert len(texts) > 40


@cache
def alone(folder, temperature) -> dict[str, list[int]]:
    """The answers that every request gets by itself."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for request in requests(130, temperature=temperature, seed=3, max_tokens=80):
            found |= tokens_of(Engine(folder).run([request], patch))
    return found


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_num_batched_tokens": 13},
        {"max_num_seqs": 2},
        {"block_size": 4, "num_blocks": 26},
        {"block_size": 1, "num_blocks": 101, "max_num_batched_tokens": 37},
        {"overlap": True, "max_num_batched_tokens": 37},
        {"overlap": True, "block_size": 4, "num_blocks": 26},
    ],
    ids=["chunked", "few-slots", "preempted", "preempted-and-chunked", "overlapped", "overlapped-and-preempted"],
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_neither_chunks_nor_neighbours_nor_preemption_change_an_answer(folder, monkeypatch, sizes, temperature):
    sampling = {"temperature": temperature, "seed": 3, "max_tokens": 80}
    expected = alone(folder, temperature)
    admitted: list[Admission] = []
    launch = LocalRunner.launch
    monkeypatch.setattr(
        LocalRunner, "launch", lambda self, plan: (admitted.extend(plan.admissions), launch(self, plan))[1]
    )
    engine = Engine(folder, **sizes)
    assert tokens_of(engine.run(requests(130, **sampling), monkeypatch)) == expected
    assert (len(admitted) > len(FORMS)) == ("num_blocks" in sizes), "some are admitted again behind their first tokens"
    again = tokens_of(engine.run_more(requests(130, **sampling), monkeypatch))
    assert again == expected


def test_free_neighbours_are_as_free_as_alone(folder, monkeypatch):
    by_itself = Engine(folder).run([requests(130)[-1]], monkeypatch)["free"]
    together = Engine(folder).run(requests(130), monkeypatch)["free"]
    assert together[0] == by_itself[0]
    torch.testing.assert_close(together[1], by_itself[1], atol=1e-5, rtol=1e-5)


def test_an_answer_ends_with_its_form_whatever_ignore_eos_and_min_tokens_say(folder, monkeypatch):
    for options in ({"ignore_eos": True}, {"min_tokens": 20}):
        made = requests(150, temperature=1, seed=1, **options)[:-1]
        for name, tokens in tokens_of(Engine(folder).run(made, monkeypatch)).items():
            assert tokens[-1] in END_IDS
            check(name, TOKENIZER.decode(tokens))


def test_an_answer_cut_short_is_a_beginning(folder, monkeypatch):
    request = requests(170, max_tokens=5)[0]
    tokens = tokens_of(Engine(folder).run([request], monkeypatch))["json-flat"]
    assert len(tokens) == 5
    assert TOKENIZER.decode(tokens).startswith("{")
