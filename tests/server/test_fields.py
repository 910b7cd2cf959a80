"""The tables of fields: complete, true to the models of the bodies, and the only say in what is refused."""

import pytest

from tests.server.asking import QUESTION, SERVED
from tilewise.errors import InvalidField
from tilewise.ignored import Ignored
from tilewise.server.completion import completion_call
from tilewise.server.convert import chat_call
from tilewise.server.fields import CHAT, COMPLETION, DETOKENIZE, RESPONSES, TABLES, TOKENIZE
from tilewise.server.protocol.chat import ChatBody
from tilewise.server.protocol.completion import CompletionBody
from tilewise.server.protocol.responses import ResponsesBody
from tilewise.server.protocol.tokenize import DetokenizeBody, TokenizeBody
from tilewise.server.responses.read import response_call
from tilewise.server.tokenize import tokenize_call

BODIES = [
    (CHAT, ChatBody),
    (COMPLETION, CompletionBody),
    (RESPONSES, ResponsesBody),
    (TOKENIZE, TokenizeBody),
    (DETOKENIZE, DetokenizeBody),
]
ASK = {
    CHAT.route: (chat_call, {"messages": [QUESTION]}),
    COMPLETION.route: (completion_call, {"prompt": "a"}),
    RESPONSES.route: (response_call, {"input": "a"}),
    TOKENIZE.route: (tokenize_call, {"prompt": "a"}),
}
ROWS = [(table, field) for table in TABLES.values() if table.route in ASK for field in table.fields]


def of(effect: str) -> list:
    return [pytest.param(t, f, id=f"{t.route}-{f.name}") for t, f in ROWS if f.effect == effect]


# Named by the documentation of the APIs that clients are written for.
NAMES = """
messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n presence_penalty
response_format seed stop stream stream_options temperature top_p tools tool_choice reasoning_effort
parallel_tool_calls user top_k min_p repetition_penalty length_penalty use_beam_search stop_token_ids
include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
truncate_prompt_tokens prompt_logprobs allowed_token_ids bad_words thinking_token_budget include_reasoning
repetition_detection echo add_generation_prompt continue_final_message add_special_tokens documents chat_template
chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id
return_tokens_as_token_ids return_token_ids cache_salt kv_transfer_params vllm_xargs truncation_side logprob_token_ids
session_id return_prompt_text return_token_offsets watermarking guided_json guided_regex guided_choice guided_grammar
store metadata service_tier
"""
CHAT_NAMES = NAMES.split()


def test_every_field_that_clients_know_has_a_row():
    assert set(CHAT_NAMES) <= set(CHAT.names)
    shared = set(CHAT_NAMES) & set(COMPLETION.names)
    assert {"suffix", "prompt", "prompt_embeds", "best_of", "echo", "logprobs"} | shared <= set(COMPLETION.names)
    assert set(CHAT_NAMES) - shared == {
        *("messages", "top_logprobs", "max_completion_tokens", "tools", "tool_choice", "reasoning_effort"),
        *("parallel_tool_calls", "include_reasoning", "add_generation_prompt", "continue_final_message", "documents"),
        *("chat_template", "chat_template_kwargs"),
    }


@pytest.mark.parametrize(("table", "body"), BODIES, ids=lambda value: getattr(value, "route", ""))
def test_a_row_works_exactly_if_the_body_has_it(table, body):
    assert len(set(table.names)) == len(table.names)
    assert table.working == set(body.model_fields)


@pytest.mark.parametrize(("table", "field"), of("refused"))
def test_a_refused_field_says_why(table, field):
    call, body = ASK[table.route]
    with pytest.raises(InvalidField) as caught:
        call({**body, field.name: {"no": "such value"}}, SERVED, Ignored())
    assert caught.value.param == field.name
    assert field.name in str(caught.value) or "Chat template" in str(caught.value)
    for value in (None, *field.harmless):
        call({**body, field.name: value}, SERVED, Ignored())


@pytest.mark.parametrize(("table", "field"), of("no effect"))
def test_a_field_without_effect_changes_nothing(table, field):
    call, body = ASK[table.route]
    plain = call({**body, "request_id": "a"}, SERVED, Ignored())
    with_it = call({**body, "request_id": "a", field.name: "anything"}, SERVED, Ignored())
    get = (lambda found: found.chat) if table is RESPONSES else (lambda found: found)
    assert get(plain).sampling == get(with_it).sampling
    assert getattr(get(plain), "prompt", None) == getattr(get(with_it), "prompt", None)


@pytest.mark.parametrize(("name", "near"), [("max_token", "max_tokens"), ("temprature", "temperature")])
def test_an_unknown_field_is_refused_with_the_nearest(name, near):
    with pytest.raises(InvalidField, match=f"has no field '{name}'. Did you mean {near}?") as caught:
        chat_call({"messages": [QUESTION], name: 1}, SERVED, Ignored())
    assert caught.value.param == name


def test_true_is_not_one_among_harmless_values():
    with pytest.raises(InvalidField, match="best_of"):
        completion_call({"prompt": "a", "best_of": True}, SERVED, Ignored())
