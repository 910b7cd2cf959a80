"""Chat bodies to calls: each field arrives where it belongs, or is refused with a text that helps."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from tests.server.asking import LOOK, QUESTION, SERVED, ask, under
from tilewise.errors import InvalidConfig, InvalidField, InvalidRequest, UnknownModel
from tilewise.ignored import IgnoredLog
from tilewise.inputs.media.reader import MediaOptions
from tilewise.inputs.options import sampling_defaults
from tilewise.sampling_params import SamplingParams, StructuredOutputsParams

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_defaults_are_vllms():
    call = ask()
    assert call.sampling == SamplingParams(max_tokens=None)
    assert (call.reply.model, call.reply.stream, call.reply.include_usage) == ("internvl3_5", False, False)
    assert call.reply.id.startswith("chatcmpl-")
    assert len(call.reply.id) == len("chatcmpl-") + 32
    assert (call.prompt.thinking, call.prompt.ending, call.prompt.processor) == (None, "open", {})
    assert (call.parts.calls, call.include_reasoning, call.echo) == ("none", True, "")


def test_defaults_of_the_model_yield_to_the_body():
    served = replace(SERVED, sampling=sampling_defaults({"temperature": 0.6, "top_k": 20, "do_sample": False}))
    assert ask(served).sampling == SamplingParams(max_tokens=None, temperature=0.6, top_k=20)
    assert ask(served, temperature=0.0, top_k=-1).sampling == SamplingParams(max_tokens=None, temperature=0, top_k=-1)
    assert ask(replace(SERVED, sampling={"max_tokens": 50})).sampling.max_tokens == 50
    assert ask(replace(SERVED, sampling={"max_tokens": 50}), max_tokens=60).sampling.max_tokens == 60


def test_generation_config_to_defaults():
    assert sampling_defaults({"top_p": 0.8, "eos_token_id": 1, "max_new_tokens": 9}, {"top_p": 0.5}) == {
        "top_p": 0.5,
        "max_tokens": 9,
    }
    with pytest.raises(InvalidConfig, match="top_p must be a number, found"):
        sampling_defaults({"top_p": "0.8"})


@pytest.mark.parametrize(
    ("name", "meant"), [("temprature", "temperature"), ("top_K", "top_k"), ("max_new_token", "max_new_tokens")]
)
def test_misspelt_keys_of_the_override(name, meant):
    with pytest.raises(InvalidConfig, match=f"no key '{name}'. Did you mean {meant}"):
        sampling_defaults({}, {name: 1})


def test_keys_of_the_override_that_set_nothing_are_named(caplog, monkeypatch):
    monkeypatch.setattr("tilewise.inputs.options.LOG", IgnoredLog())
    assert sampling_defaults({"temprature": 1, "do_sample": True}, {"foo": 1, "top_p": 0.5}) == {"top_p": 0.5}
    assert [record.getMessage().split(" has")[0] for record in caplog.records] == ["override_generation_config: foo"]


@pytest.mark.parametrize(
    ("name", "value", "arrives"),
    [
        ("frequency_penalty", 0.5, 0.5),
        ("presence_penalty", -1, -1),
        ("repetition_penalty", 1.1, 1.1),
        ("logit_bias", {"42": 5}, {42: 5.0}),
        ("min_tokens", 3, 3),
        ("n", 2, 2),
        ("seed", 7, 7),
        ("stop", "end", ("end",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop_token_ids", [1, 2], (1, 2)),
        ("include_stop_str_in_output", True, True),
        ("ignore_eos", True, True),
        ("temperature", 0.3, 0.3),
        ("top_p", 0.9, 0.9),
        ("top_k", 5, 5),
        ("min_p", 0.1, 0.1),
        ("bad_words", ["no"], ("no",)),
        ("allowed_token_ids", [4], (4,)),
        ("skip_special_tokens", False, False),
        ("prompt_logprobs", 2, 2),
    ],
)
def test_sampling_fields(name, value, arrives):
    assert getattr(ask(**{name: value}).sampling, name) == arrives


# The conversion table of pydantic's lax mode, https://docs.pydantic.dev/latest/concepts/conversion_table/ (JSON).
@pytest.mark.parametrize(
    ("name", "value", "arrives"),
    [
        ("max_tokens", 10.0, 10),
        ("max_tokens", "10", 10),
        ("temperature", "0.5", 0.5),
        ("top_p", "1", 1.0),
        ("seed", "7", 7),
        ("ignore_eos", "true", True),
        ("ignore_eos", 1, True),
        ("ignore_eos", "off", False),
        ("stop_token_ids", [1.0, "2"], (1, 2)),
        ("logit_bias", {"42": "5"}, {42: 5.0}),
    ],
)
def test_numbers_and_switches_as_text_or_as_other_numbers(name, value, arrives):
    assert getattr(ask(**{name: value}).sampling, name) == arrives


def test_names_of_the_longest_answer():
    assert ask(max_tokens=5).sampling.max_tokens == ask(max_completion_tokens=5).sampling.max_tokens == 5
    assert ask(max_tokens=9, max_completion_tokens=5).max_tokens == 5
    assert ask().max_tokens is None


def test_an_empty_list_of_stops_is_none():
    assert ask(stop=[], stop_token_ids=[]).sampling == ask().sampling


def test_logprobs():
    assert ask(logprobs=True).sampling.logprobs == 0
    assert ask(logprobs=True, top_logprobs=3).sampling.logprobs == 3
    assert ask(top_logprobs=0).sampling.logprobs is None
    with pytest.raises(InvalidField, match="when using `top_logprobs`, `logprobs` must be set to true"):
        ask(top_logprobs=3)


def test_named_tokens_take_the_place_of_the_likeliest():
    sampling = ask(logprobs=True, top_logprobs=5, logprob_token_ids=[7, 9]).sampling
    assert (sampling.logprobs, sampling.logprob_token_ids) == (None, (7, 9))
    assert ask(logprobs=True, top_logprobs=5, logprob_token_ids=[]).sampling.logprobs == 5
    with pytest.raises(InvalidField, match="when using `logprob_token_ids`, `logprobs` must be set to true"):
        ask(logprob_token_ids=[7])
    with pytest.raises(InvalidField, match="logprob_token_ids may have at most 128 entries, got 129"):
        ask(logprobs=True, logprob_token_ids=[*range(129)])


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutputsParams(json_object=True)),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            StructuredOutputsParams(json=SCHEMA),
        ),
        ({"structured_outputs": {"regex": "a+"}}, StructuredOutputsParams(regex="a+")),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True),
        ),
        ({"guided_json": SCHEMA}, StructuredOutputsParams(json=SCHEMA)),
        ({"guided_regex": "a+"}, StructuredOutputsParams(regex="a+")),
        ({"guided_choice": ["a", "b"]}, StructuredOutputsParams(choice=["a", "b"])),
        ({"guided_grammar": "root ::= 'a'"}, StructuredOutputsParams(grammar="root ::= 'a'")),
    ],
)
def test_structured_answers(fields, structure):
    assert ask(**fields).sampling.structured_outputs == structure


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "only use one kind"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "only use one kind"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "only use one kind"),
        ({"guided_json": SCHEMA, "tools": [LOOK], "tool_choice": "required"}, "only use one kind"),
        ({"structured_outputs": {}}, "none are specified"),
        ({"response_format": {"type": "json_schema"}}, "needs json_schema.schema"),
        ({"stream_options": {"include_usage": True}}, "Stream options can only be defined when `stream=True`."),
        ({"stream": True, "prompt_logprobs": 1}, "`prompt_logprobs` are not available when `stream=True`."),
        ({"continue_final_message": True, "add_generation_prompt": True}, "Cannot set both `continue_final_message`"),
        ({"chat_template": "{{ x }}"}, "--trust-request-chat-template is not set"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "may not set chat_template, which is reserved"),
        ({"chat_template_kwargs": {"tokenize": False}}, "may not set tokenize, which is reserved"),
        ({"chat_template_kwargs": {"enable_thinkin": True}}, "Did you mean enable_thinking?"),
        ({"max_dynamic_patch": 1, "mm_processor_kwargs": {"max_dynamic_patch": 2}}, "max_dynamic_patch=1 and"),
        ({"seed": 2**63}, "should be less than or equal to 9223372036854775807"),
        ({"seed": -(2**63) - 1}, "should be greater than or equal to -9223372036854775808"),
        ({"min_pixels": 3136}, "min_pixels is not supported: Pictures are cut into tiles of one size"),
        ({"extra_body": {"top_k": 1}}, "goes beside the other fields"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "enable_thinking must be true or false"),
        ({"enable_thinking": True, "reasoning_effort": "none"}, "contradict each other"),
        ({"priority": 1}, "no effect under --scheduling-policy fcfs"),
        ({"cache_salt": ""}, "cache_salt must be a text that is not empty"),
        ({"request_id": "a b"}, "request_id must be 1 to 128 characters"),
        ({"request_id": "a\r\nX: y"}, "request_id must be 1 to 128 characters"),
        ({"temperature": -1}, "temperature must be a number >= 0"),
        ({"max_tokens": 0}, "max_tokens must be a whole number >= 1"),
        ({"media_io_kwargs": {"image": {"size": 3}}}, "media_io_kwargs: image has no option 'size'"),
        ({"media_io_kwargs": {"video": {"num_frames": 0}}}, "num_frames must be a whole number from 1"),
    ],
)
def test_what_cannot_be_is_refused(fields, says):
    with pytest.raises((InvalidRequest, ValidationError)) as caught:
        ask(**fields)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", "nan"),
        ("temperature", "Infinity"),
        ("n", 1.5),
        ("n", "1.5"),
        ("stream", "perhaps"),
        ("stream", 2),
        ("stop", [1]),
        ("messages", "Hi"),
        ("logit_bias", [1]),
        ("tools", {}),
        ("tool_choice", "look"),
        ("reasoning_effort", "extreme"),
        ("response_format", {"type": "yaml"}),
        ("structured_outputs", {"regex": 1}),
        ("stream_options", {"include_usage": 2}),
    ],
)
def test_values_of_the_wrong_type_are_refused(name, value):
    with pytest.raises(ValidationError) as caught:
        ask(**{"stream": True, name: value})
    assert caught.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {}}, None),
        ({"enable_thinking": True}, True),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "high", "enable_thinking": True}, True),
    ],
)
def test_thinking(fields, thinking):
    assert ask(**fields).prompt.thinking is thinking
    assert ask(replace(SERVED, thinking=True), **fields).prompt.thinking is (
        thinking or fields == {"chat_template_kwargs": {}}
    )


def test_thinking_before_a_form_is_told_apart_on_every_server():
    """The content is of the form that was asked for, though no reasoning parser is set."""
    quiet, form = replace(SERVED, reasoning=False), {"response_format": {"type": "json_object"}}
    assert ask(quiet, **form, enable_thinking=True).parts.reasoning
    assert ask(quiet, tools=[LOOK], tool_choice="required", enable_thinking=True).parts.reasoning
    assert not ask(quiet, enable_thinking=True).parts.reasoning
    assert not ask(quiet, **form).parts.reasoning


@pytest.mark.parametrize(
    ("fields", "opened"),
    [
        ({}, True),
        ({"enable_thinking": False}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"add_generation_prompt": False}, False),
        ({"messages": [{"role": "system", "content": "Briefly."}, {"role": "user", "content": "Hi"}]}, True),
    ],
)
def test_answers_begin_within_their_thoughts_where_the_prompt_opens_them(fields, opened):
    served = replace(SERVED, thinks_unasked=True, opens_thinking=True)
    assert ask(served, **fields).parts.opened is opened
    assert ask(replace(served, thinks_unasked=False), **fields | {"enable_thinking": True}).parts.opened is (
        "add_generation_prompt" not in fields and "response_format" not in fields
    )
    assert not ask(**fields).parts.opened


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ({"continue_final_message": True}, "continue"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "continue"),
        ({"add_generation_prompt": False}, "end"),
        ({"add_generation_prompt": True}, "open"),
    ],
)
def test_endings(fields, ending):
    assert ask(**fields).prompt.ending == ending


def test_names_and_ids():
    assert ask(model="other").reply.model == "other"
    assert ask(request_id="abc").reply.id == "chatcmpl-abc"
    assert ask(header_id="from-header", request_id="abc").reply.id == "chatcmpl-from-header"
    with pytest.raises(UnknownModel, match=r"The model `gpt-4` does not exist\. This server has internvl3_5, other\."):
        ask(model="gpt-4")


def test_usage_of_streams():
    def flags(call):
        return call.reply.include_usage, call.reply.continuous_usage

    assert flags(ask(stream=True)) == (False, False)
    assert flags(ask(stream=True, stream_options={"include_usage": True})) == (True, False)
    assert (
        flags(ask(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})) == (True,) * 2
    )
    assert flags(ask(stream=True, stream_options={"continuous_usage_stats": True})) == (False, False)
    assert flags(ask(under(enable_force_include_usage=True), stream=True)) == (True, True)
    assert flags(ask(under(enable_force_include_usage=True))) == (False, False)


def test_what_goes_beside_the_prompt():
    call = ask(replace(SERVED, priorities=True), priority=-2, cache_salt="mine", truncate_prompt_tokens=9)
    assert (call.priority, call.cache_salt, call.prompt.keep_last) == (-2, "mine", 9)
    call = ask(media_io_kwargs={"video": {"num_frames": 8, "fps": 2}}, mm_processor_kwargs={"max_dynamic_patch": 6})
    assert (call.prompt.media, call.prompt.processor) == (MediaOptions(None, 8, 2.0), {"max_dynamic_patch": 6})
    call = ask(return_token_ids=True, return_tokens_as_token_ids=True, include_reasoning=False)
    assert (call.reply.token_ids, call.reply.tokens_as_ids, call.include_reasoning) == (True, True, False)


@pytest.mark.parametrize(("asked", "written"), [(None, True), (True, True), (False, False)])
def test_a_request_says_how_tokens_are_written_over_the_server(asked: bool | None, written: bool):
    call = ask(under(return_tokens_as_token_ids=True), logprobs=True, return_tokens_as_token_ids=asked)
    assert call.reply.tokens_as_ids is written


def test_echo_is_the_last_message_of_the_assistant():
    begun = {"role": "assistant", "content": [{"type": "text", "text": "It"}, {"type": "text", "text": "says"}]}
    assert ask(messages=[QUESTION, begun], echo=True, continue_final_message=True).echo == "It\nsays"
    assert ask(messages=[QUESTION], echo=True).echo == ""
    assert ask(messages=[QUESTION, begun]).echo == ""
