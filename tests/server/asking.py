"""Bodies, calls and answers for the tests of the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tilewise.ignored import Ignored
from tilewise.outputs.group import AnswerDelta
from tilewise.outputs.parts import AnswerReader
from tilewise.server.chat.answers import ChatCompletion, chat_body
from tilewise.server.chat.call import ChatCall, chat_call
from tilewise.server.config import ServerConfig
from tilewise.server.request_id import RequestId
from tilewise.server.served import ServedModel
from tilewise.types import CompletionOutput, Logprob, RequestOutput, Timing, Usage

SERVED = ServedModel(
    config=ServerConfig(), names=("internvl3_5", "other"), root="/models/a", created=7, max_model_len=4096
)
QUESTION = {"role": "user", "content": "What is the text in the illustration?"}
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.org/tiger.jpeg"}}
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look around.",
        "parameters": {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]},
    },
}
USAGE = Usage(prompt_tokens=310, completion_tokens=16, image_tokens=256, tiles=1, cached_tokens=32)


def under(**options: Any) -> ServedModel:
    """SERVED under other options of the server."""
    return replace(SERVED, config=replace(SERVED.config, **options))


def ask(served: ServedModel = SERVED, header_id: str | None = None, **fields: Any) -> ChatCall:
    return chat_call({"messages": [QUESTION], **fields}, served, Ignored(), RequestId.of(header_id))


def score(logprob: float, rank: int = 1, token: str = "a") -> Logprob:
    return Logprob(logprob, rank, token)


def output(*texts: str, finish: str = "stop", **changes: Any) -> RequestOutput:
    """A whole answer for each text, of two tokens."""
    scores = changes.pop("logprobs", None)
    answers = [
        CompletionOutput(index, text, token_ids=[5, 6], logprobs=scores, finish_reason=finish)
        for index, text in enumerate(texts)
    ]
    fields = {"request_id": "0", "prompt": "p", "prompt_token_ids": [1, 2, 3], "timing": Timing(0.0), "usage": USAGE}
    return RequestOutput(**{**fields, "outputs": answers, "finished": True, **changes})


def body_of(call: ChatCall, answers: RequestOutput) -> ChatCompletion:
    """The body of whole answers, each of which has come in one piece."""
    readers = [AnswerReader(call.parts) for _ in answers.outputs]
    for reader, answer in zip(readers, answers.outputs, strict=True):
        reader.add(answer.text, ended=True)
    return chat_body(call, answers, readers)


def pieces(texts: Sequence[str], finish: str | None = "stop", index: int = 0, **changes: Any) -> list[AnswerDelta]:
    """One piece a text; the last one ends the answer."""
    last = len(texts) - 1
    return [
        AnswerDelta(index, text, 5 + place, changes.get("scores"), finish if place == last else None, None, False)
        for place, text in enumerate(texts)
    ]
