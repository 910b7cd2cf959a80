"""Logits before and after a token is chosen: penalties in place, log-probability and rank of a token.

Rows are cut into chunks of a fixed number of tokens, so that sums are made in one order however many rows there are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 2048
_PROMPT: tl.constexpr = tl.constexpr(1 << 30)
"""Bit of a token that is in the prompt, in the number of times that it is in the answer."""


@triton.jit
def _count_tokens(seen, tokens, stride, slots, lengths, prompts, width, CHUNK: tl.constexpr):
    """Whole numbers are added, whose sum is the same in any order."""
    index = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = place < tl.load(lengths + index)
    token = tl.load(tokens + tl.load(slots + index) * stride + place, mask=inside, other=0)
    own = seen + index * width + token
    answer = place >= tl.load(prompts + index)
    tl.atomic_add(own, 1, mask=inside & answer, sem="relaxed")
    tl.atomic_or(own, _PROMPT, mask=inside & (answer == 0), sem="relaxed")


@triton.jit
def _penalise(logits, stride, rows, seen, repetitions, frequencies, presences, width, CHUNK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    found = tl.load(seen + index * width + place, mask=place < width, other=0)
    own = logits + tl.load(rows + index) * stride + place
    value = tl.load(own, mask=found != 0, other=0.0)
    repetition = tl.zeros_like(value) + tl.load(repetitions + index)
    value = tl.where(value > 0, tl.div_rn(value, repetition), value * repetition)
    count = found & (_PROMPT - 1)
    value = value - tl.load(frequencies + index) * count.to(tl.float32)
    value = value - tl.load(presences + index) * (count > 0).to(tl.float32)
    tl.store(own, value, mask=found != 0)


def penalise(
    logits: Tensor,
    rows: Tensor,
    tokens: Tensor,
    slots: Tensor,
    lengths: Tensor,
    prompts: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """`runner.logits.penalise`, in place, of rows int64 [n] of logits float32 [R, V], each at most once.

    The first lengths [n] of tokens [slots, length] at slots [n] stand before the token to choose, and prompts [n] of
    those are the prompt (int64); repetition, frequency and presence are float32 [n]. As many numbers as [n, V] are
    counted in, for a token that comes often is penalised once, by how often it comes. Products are not fused with sums,
    so the numbers are those of torch.
    """
    count, width = len(rows), logits.shape[1]
    if not count:
        return
    assert logits.stride(1) == 1
    assert tokens.stride(1) == 1
    seen = torch.zeros(count, width, dtype=torch.int32, device=logits.device)
    grid = count, triton.cdiv(tokens.shape[1], _CHUNK)
    _count_tokens[grid](seen, tokens, tokens.stride(0), slots, lengths, prompts, width, CHUNK=_CHUNK)
    _penalise[count, triton.cdiv(width, _CHUNK)](
        logits, logits.stride(0), rows, seen, repetition, frequency, presence, width, CHUNK=_CHUNK,
        enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _chunk_scores(logits, stride, rows, tokens, highests, sums, aboves, width, CHUNK: tl.constexpr):
    index, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = logits + tl.load(rows + index) * stride
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(row + place, mask=place < width, other=-float("inf")).to(tl.float32)
    own = tl.load(row + tl.load(tokens + index)).to(tl.float32)
    highest = tl.max(value)
    at = index * tl.num_programs(1) + chunk
    tl.store(highests + at, highest)
    tl.store(sums + at, tl.sum(tl.exp(value - tl.where(highest == -float("inf"), 0.0, highest))))
    tl.store(aboves + at, tl.sum((value > own).to(tl.int32)))


@triton.jit
def _scores(logits, stride, rows, tokens, highests, sums, aboves, scores, ranks, chunks, CHUNKS: tl.constexpr):
    index = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    at, there = index * chunks + chunk, chunk < chunks
    highest = tl.load(highests + at, mask=there, other=-float("inf"))
    most = tl.max(highest)
    shares = tl.exp(highest - tl.where(most == -float("inf"), 0.0, most))
    total = most + tl.log(tl.sum(tl.load(sums + at, mask=there, other=0.0) * shares))
    own = tl.load(logits + tl.load(rows + index) * stride + tl.load(tokens + index)).to(tl.float32)
    score = own - total
    # Where something in the row is no number, or everything -inf, no token has a probability or is above another.
    above = tl.where(total - total == 0, tl.sum(tl.load(aboves + at, mask=there, other=0)), 0)
    tl.store(scores + index, tl.where(score != score, -float("inf"), score))
    tl.store(ranks + index, above.to(tl.int64) + 1)


def logprob_rows(logits: Tensor, rows: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities float32 [n] of tokens int64 [n] in some rows (int64 [n], None = all) of logits [R, V]; ranks.

    A rank is the number of logits that are higher, plus one (int64 [n]). `sampler.score` counts log-probabilities that
    are: two logits whose difference is lost in the subtraction of the sum tie there, and do not here. The row is read
    once, and no float32 copy of it is made.
    """
    count, width = len(tokens), logits.shape[1]
    scores = torch.empty(count, dtype=torch.float32, device=logits.device)
    ranks = torch.empty(count, dtype=torch.int64, device=logits.device)
    if not count:
        return scores, ranks
    assert logits.stride(1) == 1
    if rows is None:
        rows = torch.arange(count, device=logits.device)
    chunks = triton.cdiv(width, _CHUNK)
    highests, sums = logits.new_empty(2, count, chunks, dtype=torch.float32)
    aboves = logits.new_empty(count, chunks, dtype=torch.int32)
    arguments = logits, logits.stride(0), rows, tokens, highests, sums, aboves
    _chunk_scores[count, chunks](*arguments, width, CHUNK=_CHUNK)
    _scores[count,](*arguments, scores, ranks, chunks, CHUNKS=triton.next_power_of_2(chunks))
    return scores, ranks
