"""CompletionStream: pieces of growing answers to chunks of a streamed text completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewise.outputs.group import Piece
from tilewise.server.calls import CompletionCall
from tilewise.server.completion import Decode, echoed, total_usage
from tilewise.server.respond import checked_reason, usage_body
from tilewise.server.scores import Scores, text_logprobs
from tilewise.types import Request, Usage


@dataclass
class _Choice:
    """One answer: where its text is, and what its tokens brought since the last chunk."""

    offset: int = 0
    begun: bool = False
    token_ids: list[int] = field(default_factory=list)
    scores: list[Scores | None] = field(default_factory=list)


class CompletionStream:
    """Chunks for the answers to several prompts, as they come; the prompt before the first text of each, if echoed."""

    def __init__(self, call: CompletionCall, requests: Sequence[Request], decode: Decode) -> None:
        self._call = call
        self._requests = requests
        self._decode = decode
        self._tokens = [0] * len(requests)
        self._choices = [_Choice() for _ in range(len(requests) * call.sampling.n)]

    def take(self, prompt: int, piece: Piece, usage: Usage) -> list[dict[str, Any]]:
        """A piece of an answer to prompt number `prompt`, whose tokens `usage` counts. Raises BrokenAnswer.

        Each chunk counts the tokens taken up to it, as `usage` may be ahead, where a step brought several.
        """
        self._tokens[prompt] += 1
        usage = replace(usage, completion_tokens=self._tokens[prompt])
        index = prompt * self._call.sampling.n + piece.index
        choice, only = self._choices[index], self._call.prompt_only
        if not only:
            choice.token_ids.append(piece.token_id)
            choice.scores += [piece.scores] if piece.scores is not None else []
        text = "" if only else piece.text
        if self._call.echo and not choice.begun:
            text = echoed(self._requests[prompt].prompt, self._requests[prompt].prompt_ids, self._decode) + text
        if not text and piece.finish_reason is None:
            return []
        body: dict[str, Any] = {"index": index, "text": text, **self._of_tokens(choice), "finish_reason": None}
        if piece.finish_reason is not None:
            body["finish_reason"] = "length" if only else checked_reason(piece.finish_reason)
            body["stop_reason"] = None if only else piece.stop_reason
        if self._call.reply.token_ids and not choice.begun:
            body["prompt_token_ids"] = list(self._requests[prompt].prompt_ids)
        choice.begun = True
        return [self._chunk([body], usage if self._call.reply.continuous_usage else None)]

    def finish(self, usages: Sequence[Usage]) -> list[dict[str, Any]]:
        """What comes behind all answers: the usage of all prompts, if it is wanted."""
        return [self._chunk([], *usages)] if self._call.reply.include_usage else []

    def _of_tokens(self, choice: _Choice) -> dict[str, Any]:
        reply, top = self._call.reply, self._call.sampling.scored_tokens
        found: dict[str, Any] = {"logprobs": None}
        if choice.scores and top is not None:
            found["logprobs"] = text_logprobs(
                choice.scores, choice.token_ids, top, reply.tokens_as_ids, offset=choice.offset
            )
            choice.offset = found["logprobs"]["text_offset"][-1] + len(found["logprobs"]["tokens"][-1])
        if reply.token_ids:
            found["token_ids"] = list(choice.token_ids)
        choice.token_ids.clear()
        choice.scores.clear()
        return found

    def _chunk(self, choices: list[dict[str, Any]], *usages: Usage | None) -> dict[str, Any]:
        reply = self._call.reply
        chunk: dict[str, Any] = {
            "id": reply.id,
            "object": "text_completion",
            "created": reply.created,
            "model": reply.model,
            "choices": choices,
        }
        counted = [usage for usage in usages if usage is not None]
        if counted:
            chunk["usage"] = usage_body(total_usage(self._call, counted))
        return chunk
