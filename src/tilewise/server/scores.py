"""Log-probabilities in the forms that chat, text completions and prompts report them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewise.types import Logprob

LOWEST = -9999.0
"""Least log-probability that is reported, since JSON has no infinity."""
Scores = dict[int, Logprob]


def chat_logprobs(
    scores: Sequence[Scores], token_ids: Sequence[int], top: int, as_ids: bool
) -> dict[str, list[dict[str, Any]]]:
    """Return log-probabilities in the form of chat, with the `top` likeliest tokens at each position; -1 = all."""
    content = [
        {
            **_entry(token_id, found[token_id], as_ids),
            "top_logprobs": [_entry(i, score, as_ids) for i, score in likeliest(found, top)],
        }
        for found, token_id in zip(scores, token_ids, strict=True)
    ]
    return {"content": content}


def likeliest(scores: Scores, top: int) -> list[tuple[int, Logprob]]:
    ranked = sorted(scores.items(), key=lambda item: item[1].rank)
    return ranked if top < 0 else ranked[:top]


def token_name(token_id: int, score: Logprob, as_ids: bool) -> str:
    return f"token_id:{token_id}" if as_ids else score.decoded_token or ""


def clamped(score: Logprob) -> float:
    return max(score.logprob, LOWEST)


def prompt_scores(scores: Sequence[Scores | None] | None) -> list[dict[str, Any] | None] | None:
    if scores is None:
        return None
    return [None if found is None else {str(i): _ranked(score) for i, score in found.items()} for found in scores]


def _ranked(score: Logprob) -> dict[str, Any]:
    return {"logprob": clamped(score), "rank": score.rank, "decoded_token": score.decoded_token}


def _entry(token_id: int, score: Logprob, as_ids: bool) -> dict[str, Any]:
    token = token_name(token_id, score, as_ids)
    return {"token": token, "logprob": clamped(score), "bytes": list(token.encode("utf-8"))}


def text_logprobs(
    scores: Sequence[Scores | None],
    token_ids: Sequence[int],
    top: int,
    as_ids: bool,
    *,
    offset: int = 0,
    first: str = "",
) -> dict[str, list[Any]]:
    """Return log-probabilities in the form of text completions; `offset` is where the first token begins in the text.

    A prompt's first token has no score, as nothing comes before it: `first` is its text.
    """
    found: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for score, token_id in zip(scores, token_ids, strict=True):
        chosen = score and score[token_id]
        token = token_name(token_id, chosen, as_ids) if chosen else f"token_id:{token_id}" if as_ids else first
        found["text_offset"].append(offset)
        found["token_logprobs"].append(clamped(chosen) if chosen else None)
        found["tokens"].append(token)
        found["top_logprobs"].append(score and _alternatives(score, token_id, top, as_ids))
        offset += len(token)
    return found


def _alternatives(scores: Scores, token_id: int, top: int, as_ids: bool) -> dict[str, float]:
    """Return the chosen token, whatever its rank, first as in vLLM; then the likeliest."""
    shown = {token_id: scores[token_id], **dict(likeliest(scores, top))}
    return {token_name(i, score, as_ids): clamped(score) for i, score in shown.items()}
