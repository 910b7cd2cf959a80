"""Our bodies through the types of OpenAI's own client."""

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server.asking import LOOK, SERVED, USAGE, ask, body_of, output, pieces, score
from tilewise.ignored import Ignored
from tilewise.server.chat.answers import ChatStream
from tilewise.server.completions.answers import completion_body
from tilewise.server.completions.call import completion_call

CALL = '<think>Hm.</think>I look.\n<tool_call>\n{"name": "look", "arguments": {"where": "left"}}\n</tool_call>'
SCORES = [{5: score(-0.5)}, {6: score(-20000.0)}]


@pytest.mark.parametrize("text", ["A tiger.", CALL, ""])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_chat(text, finish):
    call = ask(tools=[LOOK], logprobs=True, top_logprobs=1)
    body = body_of(call, output(text, finish=finish, logprobs=SCORES))
    parsed = ChatCompletion.model_validate(body)
    assert parsed.usage.prompt_tokens_details.cached_tokens == 32
    assert len(parsed.choices[0].logprobs.content) == 2
    if text == CALL:
        (made,) = parsed.choices[0].message.tool_calls
        assert (made.function.name, parsed.choices[0].message.content) == ("look", "I look.")


@pytest.mark.parametrize("text", ["A tiger.", CALL])
def test_chunks(text):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = ChatStream(ask(tools=[LOOK], stream=True, stream_options=options, logprobs=True))
    scores = {token: score(-0.5) for token in range(5, 200)}
    chunks = [chunk for piece in pieces(list(text), scores=scores) for chunk in stream.take(piece, USAGE)]
    parsed = [ChatCompletionChunk.model_validate(chunk).usage for chunk in [*chunks, *stream.finish(output())]]
    totals = [usage.total_tokens for usage in parsed]
    assert (totals[0], totals[-1]) == (310, 326)  # the prompt's 310, and no token is counted twice
    assert totals[:-1] == sorted(totals[:-1])


def test_completions():
    call = completion_call({"prompt": "a", "logprobs": 1}, SERVED, Ignored())
    parsed = Completion.model_validate(completion_body(call, [output("ab", logprobs=SCORES)], lambda ids: ""))
    assert parsed.choices[0].logprobs.token_logprobs == [-0.5, -9999.0]
