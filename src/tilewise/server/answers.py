"""The parts that answers of several routes have: usage, times, log-probabilities and the reason of an end.

The types are those that functions return and that the OpenAPI document shows. A key that is not required is absent
where it does not apply, while nulls are written out: clients of every age find the keys they know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, cast

from typing_extensions import TypedDict

from tilewise.errors import BrokenAnswer
from tilewise.types import Logprob, RequestOutput, Usage

Finish = Literal["stop", "length", "tool_calls", "abort"]
StopReason = str | int | None
Scores = dict[int, Logprob]
_LOWEST = -9999.0
"""Least log-probability that is reported, since JSON has no infinity."""


class PromptDetails(TypedDict):
    cached_tokens: int
    image_tokens: int
    tiles: int


class CompletionDetails(TypedDict):
    reasoning_tokens: int


class UsageCounts(TypedDict):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: NotRequired[CompletionDetails]
    """Absent where an answer has no reasoning."""


def usage_body(usage: Usage, reasoning_tokens: int = 0) -> UsageCounts:
    counts: UsageCounts = {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "tiles": usage.tiles,
        },
    }
    if reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return counts


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Return the usage of several prompts together."""
    rows = [dataclasses.astuple(usage) for usage in usages]
    return Usage(*map(sum, zip(*rows, strict=True)))


class RequestTimes(TypedDict, total=False):
    """Under --enable-per-request-metrics; milliseconds, and tokens a second."""

    time_to_first_token_ms: float
    generation_time_ms: float
    queue_time_ms: float
    mean_itl_ms: float
    tokens_per_second: float


class CompletionHead(TypedDict):
    """The part that all answers of chat and text completions have, and their chunks."""

    id: str
    created: int
    model: str
    metrics: NotRequired[RequestTimes]
    """Present under --enable-per-request-metrics, where there is one answer."""


class WholeCompletion(CompletionHead):
    service_tier: None
    system_fingerprint: None
    usage: UsageCounts
    kv_transfer_params: None


class CompletionChunk(CompletionHead):
    usage: NotRequired[UsageCounts]


def request_times(output: RequestOutput) -> RequestTimes:
    """Return vLLM's per-request metrics: times in milliseconds, and tokens a second.

    Tokens a second are those from the first planned work to the last token. Metrics that an answer was too short for
    are left out.
    """
    timing, tokens = output.timing, output.usage.completion_tokens
    times: RequestTimes = {}
    if timing.prefill is not None:
        times["time_to_first_token_ms"] = 1000 * timing.prefill
    if timing.decode is not None:
        times["generation_time_ms"] = 1000 * timing.decode
    if timing.queue is not None:
        times["queue_time_ms"] = 1000 * timing.queue
    if timing.decode is not None and tokens > 1:
        times["mean_itl_ms"] = 1000 * timing.decode / (tokens - 1)
    if timing.inference:
        times["tokens_per_second"] = tokens / timing.inference
    return times


class PictureExplanation(TypedDict):
    """One picture of a request; a picture that came encoded has neither width nor height."""

    width: int
    height: int
    columns: int
    rows: int
    encoded: list[bool]
    """One value a tile, row by row and the thumbnail last: true if it was encoded for this request, false if its rows
    were there already."""


class PartSeconds(TypedDict):
    """Seconds of a request by part; `encode`, the wait for tiles, lies within `queue` and `prefill`."""

    download: float
    decode: float
    preprocess: float
    queue: float
    encode: float
    prefill: float
    answer: float


class Explanation(TypedDict):
    pictures: list[PictureExplanation]
    seconds: PartSeconds


def explanation(output: RequestOutput) -> Explanation:
    """Return how a whole answer came about."""
    timing, inputs = output.timing, output.timing.inputs
    return {
        "pictures": [
            {
                "width": picture.size[0],
                "height": picture.size[1],
                "columns": picture.grid[0],
                "rows": picture.grid[1],
                "encoded": list(picture.encoded),
            }
            for picture in output.pictures
        ],
        "seconds": {
            "download": inputs.download,
            "decode": inputs.decode,
            "preprocess": inputs.preprocess,
            "queue": timing.queue or 0.0,
            "encode": timing.encode or 0.0,
            "prefill": timing.prefill or 0.0,
            "answer": timing.decode or 0.0,
        },
    }


def checked_reason(reason: str | None) -> Finish | None:
    """Return an answer's reason to end. Raises BrokenAnswer for a structured answer that could not keep its form."""
    if reason == "error":
        raise BrokenAnswer(
            "The answer could not be followed to its end by the form that was asked for: simplify the schema, pattern "
            "or grammar, and leave it the tokens that it needs (allowed_token_ids, bad_words, logit_bias)."
        )
    return cast(Finish | None, reason)


class SchemaChecked(TypedDict):
    schema_errors: NotRequired[list[str]]
    """Violations of the schema of which `strict: true` was asked; absent if there are none."""


class TokenScore(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChosenScore(TokenScore):
    top_logprobs: list[TokenScore]


class ChatScores(TypedDict):
    content: list[ChosenScore]


class PromptScore(TypedDict):
    logprob: float
    rank: int
    decoded_token: str | None


PromptScores = list[dict[str, PromptScore] | None]


class TextScores(TypedDict):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


def chat_scores(scores: Sequence[Scores], token_ids: Sequence[int], top: int, as_ids: bool) -> list[ChosenScore]:
    """Return log-probabilities in the form of chat, with the `top` likeliest tokens at each position; -1 = all."""
    return [
        {
            **_entry(token_id, found[token_id], as_ids),
            "top_logprobs": [_entry(i, score, as_ids) for i, score in _likeliest(found, top)],
        }
        for found, token_id in zip(scores, token_ids, strict=True)
    ]


def _likeliest(scores: Scores, top: int) -> list[tuple[int, Logprob]]:
    ranked = sorted(scores.items(), key=lambda item: item[1].rank)
    return ranked if top < 0 else ranked[:top]


def _token_name(token_id: int, score: Logprob, as_ids: bool) -> str:
    return f"token_id:{token_id}" if as_ids else score.decoded_token or ""


def _clamped(score: Logprob) -> float:
    return max(score.logprob, _LOWEST)


def _entry(token_id: int, score: Logprob, as_ids: bool) -> TokenScore:
    token = _token_name(token_id, score, as_ids)
    return {"token": token, "logprob": _clamped(score), "bytes": list(token.encode("utf-8"))}


def prompt_scores(scores: Sequence[Scores | None] | None) -> PromptScores | None:
    if scores is None:
        return None
    return [None if found is None else {str(i): _ranked(score) for i, score in found.items()} for found in scores]


def _ranked(score: Logprob) -> PromptScore:
    return {"logprob": _clamped(score), "rank": score.rank, "decoded_token": score.decoded_token}


def text_scores(
    scores: Sequence[Scores | None],
    token_ids: Sequence[int],
    top: int,
    as_ids: bool,
    *,
    offset: int = 0,
    first: str = "",
) -> TextScores:
    """Return log-probabilities in the form of text completions; `offset` is where the first token begins in the text.

    A prompt's first token has no score, as nothing comes before it: `first` is its text.
    """
    found: TextScores = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for score, token_id in zip(scores, token_ids, strict=True):
        chosen = score and score[token_id]
        token = _token_name(token_id, chosen, as_ids) if chosen else f"token_id:{token_id}" if as_ids else first
        found["text_offset"].append(offset)
        found["token_logprobs"].append(_clamped(chosen) if chosen else None)
        found["tokens"].append(token)
        found["top_logprobs"].append(_alternatives(score, token_id, top, as_ids) if score else None)
        offset += len(token)
    return found


def _alternatives(scores: Scores, token_id: int, top: int, as_ids: bool) -> dict[str, float]:
    """Return the chosen token, whatever its rank, first as in vLLM; then the likeliest."""
    shown = {token_id: scores[token_id], **dict(_likeliest(scores, top))}
    return {_token_name(i, score, as_ids): _clamped(score) for i, score in shown.items()}


@dataclass
class ChunkInterval:
    """A count of the tokens between the chunks of one answer; its first token and its last do not wait."""

    tokens: int
    _waiting: int | None = None

    def is_due(self, ended: bool) -> bool:
        """Count a token; return whether a chunk is due with it."""
        waiting = self.tokens if self._waiting is None else self._waiting + 1
        due = ended or waiting >= self.tokens
        self._waiting = 0 if due else waiting
        return due
