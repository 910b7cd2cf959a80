"""The sampler as its definition reads: one row at a time, loops, full sorts, noise in numpy. Slow, independent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tilewise.sampling_params import SamplingParams
from tilewise.types import SampledToken


def plain_sample(
    logits: Tensor, tokens: list[int], num_prompt: int, sampling: SamplingParams, seed: int, stop=(), bad_words=()
) -> SampledToken:
    """The token after `tokens`, for one row of logits [vocabulary]."""
    raw = logits.float()
    row = plain_process(raw.tolist(), tokens, num_prompt, sampling, stop, bad_words)
    if sampling.temperature == 0:
        token = int(torch.tensor(row).argmax())
    else:
        left = plain_truncate(torch.tensor(row) / sampling.temperature, sampling)
        weights = (left - left.max()).exp()
        token = int((weights / torch.tensor(plain_noise(seed, len(tokens), len(row)))).argmax())
    return plain_report(raw, token, sampling.logprobs)


def plain_process(row: list[float], tokens, num_prompt, sampling, stop=(), bad_words=()) -> list[float]:
    answer = tokens[num_prompt:]
    row = [np.float32(value) for value in row]
    if sampling.allowed_token_ids:
        row = [value if i in sampling.allowed_token_ids else np.float32("-inf") for i, value in enumerate(row)]
    for word in bad_words:
        start = list(word[:-1])
        if len(answer) >= len(start) and answer[len(answer) - len(start) :] == start:
            row[word[-1]] -= np.float32(1e30)
    if len(answer) < sampling.min_tokens:
        for end in {*stop, *sampling.stop_ids}:
            if end < len(row):
                row[end] = np.float32(-1e30)
    for token, bias in (sampling.logit_bias or {}).items():
        row[token] += np.float32(bias)
    for token in set(tokens):
        repetition = np.float32(sampling.repetition_penalty)
        value = row[token] / repetition if row[token] > 0 else row[token] * repetition
        count = answer.count(token)
        value -= np.float32(sampling.frequency_penalty) * np.float32(count)
        row[token] = value - np.float32(sampling.presence_penalty) * np.float32(count > 0)
    return [float(value) for value in row]


def plain_truncate(row: Tensor, sampling: SamplingParams) -> Tensor:
    """Set to -inf what top-k, then min-p, then top-p leave out."""
    gone = float("-inf")
    if 0 < sampling.top_k < len(row):
        row = row.masked_fill(row < row.sort(descending=True).values[sampling.top_k - 1], gone)
    if sampling.min_p > 0:
        probabilities = row.softmax(-1)
        row = row.masked_fill(probabilities < sampling.min_p * probabilities.max(), gone)
    if sampling.top_p < 1:
        ordered = row.sort(descending=True).values
        probabilities = ordered.softmax(-1).tolist()
        last, sum_so_far = 0, 0.0
        for place, probability in enumerate(probabilities):
            if sum_so_far < sampling.top_p and probability > 0:
                last = place
            sum_so_far += probability
        row = row.masked_fill(row < ordered[last], gone)
    return row


def plain_noise(seed: int, position: int, size: int) -> np.ndarray:
    """Exponential noise of the first `size` tokens: two rounds of MurmurHash3's finaliser, keyed by SplitMix64."""
    key = np.uint64(_splitmix(_splitmix(seed) + position * 0x9E3779B97F4A7C15))
    high, low = np.uint32(key >> np.uint64(32)), np.uint32(key & np.uint64(0xFFFFFFFF))
    bits = _finalise(_finalise(np.arange(size, dtype=np.uint32) ^ high) ^ low)
    uniform = ((bits & np.uint32(0x7FFFFFFF)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-31)
    uniform = np.minimum(uniform, np.float32(1 - 2**-24))
    return (-torch.from_numpy(-uniform).log1p()).numpy()


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def _finalise(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))


def plain_report(row: Tensor, token: int, logprobs: int | None) -> SampledToken:
    if logprobs is None:
        return SampledToken(token)
    scores = row.log_softmax(-1).tolist()
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: len(scores) if logprobs < 0 else logprobs]
    rank = sum(score > scores[token] for score in scores) + 1
    return SampledToken(token, scores[token], rank, tuple((i, scores[i]) for i in best))
