"""Bytes that a token takes in the KV cache, and the largest step while it runs, by arithmetic: no profiling run, and
known before any weight.

A step decodes first and encodes tiles then, so what counts is the larger of the two. For each, the tensors that live
at the same time are added up at the places where that may be most. What attention and experts keep beside their
results is told by their ops (`Ops.paged_scratch`, `Ops.dense_scratch`, `Ops.moe_scratch`). Docstrings list the tensors
that are counted.

The letters are those of shapes: N tokens of the step, H hidden width, R rows to sample, V vocabulary, T tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilewise.models.config import DecoderConfig, ModelConfig
from tilewise.plan.memory import LargestStep
from tilewise.platforms.kv_cache import bytes_per_head, kept_dtype
from tilewise.platforms.ops import AttentionSize, ExpertSize, Ops
from tilewise.runner.sampler import PROMPT_SCORE_ROWS as SCORED_ROWS

_FLOAT, _INT = 4, 8


def activation_bytes(
    config: ModelConfig, itemsize: int, ops: Ops, step: LargestStep, quantised_kv: bool = False
) -> int:
    """Return the bytes of activations in the largest step; `itemsize` is that of the model's dtype."""
    decoder = DecoderStep(config.decoder, itemsize, ops, step, quantised_kv).bytes
    return max(decoder, EncoderBatch(config, itemsize, ops, step.tiles).bytes) + table_bytes(config.decoder, step)


def table_bytes(config: DecoderConfig, step: LargestStep) -> int:
    """Return the bytes of tables, which are sized for the largest step: tokens and blocks of slots, cosines, sines."""
    slots = step.sequences + 1
    return slots * step.context * 2 * _INT + step.context * config.head_dim * _FLOAT


def token_bytes(config: DecoderConfig, kv_cache_dtype: str | None, dtype: torch.dtype) -> int:
    """Return the bytes of a token's keys and values in all layers, for a model that computes in `dtype`."""
    head = bytes_per_head(config.head_dim, kept_dtype(kv_cache_dtype, dtype))
    return 2 * config.num_layers * config.num_kv_heads * head


def norm_bytes(numbers: int, itemsize: int) -> int:
    """Return the bytes of the reference's RMS norm: input and normed in float32, cast, times weight.

    A model in float32 has no casts.
    """
    return numbers * (2 * _FLOAT + (2 * itemsize if itemsize != _FLOAT else 0))


@dataclass(frozen=True, slots=True)
class DecoderStep:
    """The largest step of the decoder, in bytes."""

    config: DecoderConfig
    itemsize: int
    ops: Ops
    step: LargestStep
    quantised_kv: bool = False

    @property
    def bytes(self) -> int:
        inside = 3 * self.hidden + max(self.attention, self.mlp)  # embeddings, and x before and in a block
        behind = self.hidden + max(self.sampling, self.prompt_scores)
        return self.integers + max(inside, behind)

    @property
    def integers(self) -> int:
        """Ids, positions and slots, each once in parts and once whole, image rows; cosines and sines."""
        return self.step.tokens * (8 * _INT + self.config.head_dim * _FLOAT)

    @property
    def hidden(self) -> int:
        """Hidden states [N, H]."""
        return self.step.tokens * self.config.hidden_size * self.itemsize

    @property
    def attention(self) -> int:
        """Normed input, q, k, v at once, q and k normed and turned, k and v rounded where the cache has 8 bits; then
        scratch and result, and the output.
        """
        config, tokens = self.config, self.step.tokens
        queries, keys = (heads * config.head_dim * tokens for heads in (config.num_heads, config.num_kv_heads))
        kept = self.hidden + self.itemsize * (queries + 2 * keys + 2 * (queries + keys))
        turning = norm_bytes(queries, self.itemsize) + _FLOAT * queries
        rounding = 4 * _FLOAT * keys if self.quantised_kv else 0
        mixing = 2 * self.itemsize * queries + self.ops.paged_scratch(self._attention_size()) + self.hidden
        return kept + max(turning, rounding, mixing)

    def _attention_size(self) -> AttentionSize:
        config, keys = self.config, self.step.context
        queries = min(self.step.tokens, keys)
        heads = (config.num_heads, config.num_kv_heads, config.head_dim)
        plain = config.window is None
        return AttentionSize(queries, keys, *heads, self.itemsize, plain, quantised=self.quantised_kv)

    @property
    def mlp(self) -> int:
        """Normed input, gate and up, silu, the product, the output; or router and experts."""
        config, tokens = self.config, self.step.tokens
        if config.experts is None:
            inner = tokens * config.intermediate_size * self.itemsize
            return self.hidden + max(4 * inner + self.hidden, norm_bytes(tokens * config.hidden_size, self.itemsize))
        experts = config.experts
        size = ExpertSize(*(tokens, experts.per_token, config.hidden_size, experts.intermediate_size, self.itemsize))
        scores = tokens * (2 * experts.count * _FLOAT + experts.per_token * (2 * _FLOAT + 2 * _INT))
        router = tokens * config.hidden_size * _FLOAT + scores
        chosen = scores + self.hidden + self.ops.moe_scratch(size)
        return self.hidden + max(router, chosen)

    @property
    def sampling(self) -> int:
        """Logits as they came and masked, and the larger of masking, choosing and reporting."""
        rows, vocabulary = self.step.rows, self.config.vocab_size
        logits = rows * vocabulary
        masking = logits * (2 * _FLOAT + self.itemsize)
        # Processed in float32; then counts of penalties and tokens of all slots, or candidates of the rows drawn.
        penalties = _FLOAT * logits + rows * self.step.context * (3 * _INT + 6 * _FLOAT)
        drawing = min(rows, self.ops.drawn_at_once) * vocabulary * 12 * _FLOAT
        choosing = _FLOAT * logits + max(penalties, drawing)
        return 2 * logits * self.itemsize + max(masking, choosing, self._scored(rows))

    @property
    def prompt_scores(self) -> int:
        """A slice of the prompt at a time, whose logits are made and then scored."""
        rows = min(SCORED_ROWS, self.step.tokens) if self.step.rows else 0
        states = rows * self.config.hidden_size
        return norm_bytes(states, self.itemsize) + rows * self.config.vocab_size * self.itemsize + self._scored(rows)

    def _scored(self, rows: int) -> int:
        """Return the bytes of logits, log-probabilities, what is likelier (bool, int64), the likeliest, and a sort."""
        vocabulary, asked = self.config.vocab_size, self.step.logprobs
        likeliest = 2 * (vocabulary if asked < 0 else min(asked, vocabulary)) * (_FLOAT + _INT)
        return rows * (vocabulary * (self.itemsize + _FLOAT + 1 + _INT) + likeliest)


@dataclass(frozen=True, slots=True)
class EncoderBatch:
    """The largest batch of tiles that is encoded, in bytes."""

    config: ModelConfig
    itemsize: int
    ops: Ops
    tiles: int

    @property
    def bytes(self) -> int:
        return max(self.patches, self.tower, self.projector)

    @property
    def patches(self) -> int:
        """Pixels on device and host, twice in float32, and as patches; those embedded, with class, with positions."""
        pixels = self.tiles * 3 * self.config.tile_size**2
        return pixels * (2 + 2 * _FLOAT + self.itemsize) + 3 * self._wide(1)

    @property
    def tower(self) -> int:
        """x before and in a block, and the larger of attention and MLP."""
        vision = self.config.vision
        width = self._wide(1)
        normed = norm_bytes(width // self.itemsize, self.itemsize)
        scratch = self.ops.dense_scratch(self._attention_size())
        queries_keys = 2 * width if vision.qk_norm else 0
        attention = 3 * width + queries_keys + max(normed, scratch + 3 * width)
        mlp = 2 * self._wide(vision.intermediate_size / vision.hidden_size) + width
        return 2 * width + max(normed, attention, mlp)

    @property
    def projector(self) -> int:
        """Features, shuffled and normed, and the wider of the two projectors with GELU between its products."""
        flash = self.config.flash
        rows, hidden = self.tiles * self.config.rows_per_page, self.config.decoder.hidden_size * self.itemsize
        return 4 * self._wide(1) + (5 if flash else 3) * rows * hidden

    def _wide(self, times: float) -> int:
        """Return the bytes of all tiles' patches and class tokens, `times` as wide as the tower."""
        return int(self.tiles * self._tokens * self.config.vision.hidden_size * times) * self.itemsize

    def _attention_size(self) -> AttentionSize:
        tokens, heads, width = self._tokens, self.config.vision.num_heads, self.config.vision.hidden_size
        return AttentionSize(tokens, tokens, heads, heads, width // heads, self.itemsize, tiles=self.tiles)

    @property
    def _tokens(self) -> int:
        """Patches of a tile, and its class token."""
        return (self.config.tile_size // self.config.vision.patch_size) ** 2 + 1
