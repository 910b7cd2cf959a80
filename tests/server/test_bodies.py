"""The fields of bodies: complete, true to their types, and the only say in what is refused."""

from typing import Any

import pydantic
import pytest

from tests.server.asking import QUESTION, SERVED
from tests.server.foreign_fields import OTHERS, VLLM
from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.server.bodies import BODIES, ChatBody, CompletionBody, EncodeBody, ResponsesBody, TokenizeBody
from tilewise.server.body import UnknownFields, fields_of
from tilewise.server.chat.call import chat_call
from tilewise.server.completions.call import completion_call
from tilewise.server.problems import Problem
from tilewise.server.responses.call import response_call
from tilewise.server.tokenize import tokenize_call

ASK = {
    ChatBody: (chat_call, {"messages": [QUESTION]}),
    CompletionBody: (completion_call, {"prompt": "a"}),
    ResponsesBody: (response_call, {"input": "a"}),
    TokenizeBody: (tokenize_call, {"prompt": "a"}),
}
ROWS = [(kind, field) for kind in ASK for field in fields_of(kind).values()]
BY_ROUTE = {kind.route: kind for kind in BODIES}


def of(effect: str) -> list:
    return [pytest.param(kind, f, id=f"{kind.route}-{f.name}") for kind, f in ROWS if f.effect == effect]


@pytest.mark.parametrize(("version", "route"), [(version, route) for version in VLLM for route in VLLM[version]])
def test_every_field_of_vllm_has_a_row(version, route):
    assert set(VLLM[version][route].split()) <= set(fields_of(BY_ROUTE[route]))


@pytest.mark.parametrize("server", OTHERS)
def test_every_field_of_other_servers_has_a_row(server):
    assert set(OTHERS[server].split()) <= set(fields_of(ChatBody))


@pytest.mark.parametrize("kind", [*BODIES, EncodeBody], ids=lambda kind: kind.route)
def test_a_field_has_one_row_with_a_sentence(kind):
    names = [field.name for field in kind.others]
    assert len(set(names)) == len(names)
    assert all(len(field.note) > 5 and field.note[-1] in ".:;)" for field in fields_of(kind).values())


@pytest.mark.parametrize(("kind", "field"), of("refused"))
def test_a_refused_field_says_why(kind, field):
    call, body = ASK[kind]
    with pytest.raises(InvalidField) as caught:
        call({**body, field.name: {"no": "such value"}}, SERVED, Ignored())
    assert caught.value.param == field.name
    assert field.name in str(caught.value) or "Chat template" in str(caught.value)
    for value in (None, *field.harmless):
        call({**body, field.name: value}, SERVED, Ignored())


@pytest.mark.parametrize(("kind", "field"), of("no effect"))
def test_a_field_without_effect_changes_nothing_and_is_named(kind, field):
    call, body = ASK[kind]
    ignored = Ignored()
    plain = call({**body, "request_id": "a"}, SERVED, Ignored())
    with_it = call({**body, "request_id": "a", field.name: "anything"}, SERVED, ignored)
    get = (lambda found: found.chat) if kind is ResponsesBody else (lambda found: found)
    assert get(plain).sampling == get(with_it).sampling
    assert getattr(get(plain), "prompt", None) == getattr(get(with_it), "prompt", None)
    assert ignored.names == (field.name,)
    for value in (None, *field.harmless):
        silent = Ignored()
        call({**body, field.name: value}, SERVED, silent)
        assert not silent


@pytest.mark.parametrize(("name", "near"), [("max_token", "max_tokens"), ("temprature", "temperature")])
def test_an_unknown_field_is_refused_with_the_nearest(name, near):
    with pytest.raises(InvalidField, match=f"has no field '{name}'. Did you mean {near}?") as caught:
        chat_call({"messages": [QUESTION], name: 1}, SERVED, Ignored())
    assert caught.value.param == name


def test_true_is_not_one_among_harmless_values():
    with pytest.raises(InvalidField, match="best_of"):
        completion_call({"prompt": "a", "best_of": True}, SERVED, Ignored())


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": [1.5] * 10_000},
        {"prompt": [[1.5] * 10_000] * 3},
        {"stop": [None, 5] * 10_000},
        {"bad_words": [{}] * 10_000},
        {"logit_bias": {str(number): "a" for number in range(10_000)}},
        {"structured_outputs": {"choice": [1] * 10_000}},
    ],
)
def test_one_wrong_item_of_many_is_told(wrong: dict[str, Any]):
    """pydantic would make an error of each, a few times over: seconds and gigabytes for a body of megabytes."""
    with pytest.raises(pydantic.ValidationError) as caught:
        CompletionBody.read({"prompt": "a", **wrong}, UnknownFields(Ignored()))
    assert caught.value.error_count() <= 6
    problem = Problem.of(caught.value)
    assert problem.param.startswith(next(iter(wrong)))
    assert len(problem.message) < 300
