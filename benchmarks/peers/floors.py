"""The least that each row can take: operations and bytes, by arithmetic from a config, over a machine's rates."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.work import Sizes

from tilewise.models.config import DecoderConfig, ModelConfig, VisionConfig

AROUND = 12
"""Tokens of the template around a question and a picture."""


@dataclass(frozen=True)
class Rates:
    """What a machine reaches, a second."""

    read: float
    """Bytes."""
    operations: float
    """Of one type; a multiplication and an addition are two."""


@dataclass(frozen=True)
class Amounts:
    """Of a model. `weights` are those that multiply for each token; a mixture's are those of the chosen experts."""

    config: ModelConfig

    @property
    def tile(self) -> float:
        """Operations of one tile, through the tower and the projector."""
        vision, decoder = self.config.vision, self.config.decoder
        patches = (self.config.tile_size // vision.patch_size) ** 2
        tokens = patches + 1
        layers = vision.num_layers * tokens * (2 * _vision_weights(vision) + 4 * tokens * vision.hidden_size)
        patching = 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size
        inputs = vision.hidden_size * self.config.shuffle_block**2
        projector = inputs * decoder.hidden_size + decoder.hidden_size**2
        return float(layers + patching + 2 * self.config.tokens_per_tile * projector)

    @property
    def layer_weights(self) -> int:
        decoder = self.config.decoder
        return decoder.num_layers * _decoder_weights(decoder)

    @property
    def head(self) -> int:
        return self.config.decoder.vocab_size * self.config.decoder.hidden_size

    def prompt(self, tokens: int, before: int = 0) -> float:
        """Operations of a prompt's last `tokens`, the head for one of them."""
        decoder = self.config.decoder
        seen = tokens * before + tokens * (tokens + 1) / 2
        attention = 4 * decoder.num_heads * decoder.head_dim * seen * decoder.num_layers
        return 2 * tokens * self.layer_weights + attention + 2 * self.head

    def kv_bytes(self, tokens: int, width: int) -> int:
        """Keys and values of a context, `width` bytes each."""
        decoder = self.config.decoder
        return 2 * width * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * tokens


def _vision_weights(vision: VisionConfig) -> int:
    """Of a layer of the tower: query, key, value, output, and the MLP's two."""
    return 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size


def _decoder_weights(decoder: DecoderConfig) -> int:
    heads = (2 * decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    experts = decoder.experts
    width = experts.per_token * experts.intermediate_size if experts else decoder.intermediate_size
    return decoder.hidden_size * (heads + 3 * width)


@dataclass(frozen=True)
class Floors:
    """Seconds, or tokens a second, that no engine can beat on this machine in this precision."""

    amounts: Amounts
    rates: Rates
    weight_bytes: int
    cache_bytes: int
    """Of a key or value. Activations that stay in caches count for nothing."""
    sizes: Sizes

    def rows(self) -> dict[str, float]:
        """By row of the table; rows that are no matter of arithmetic are left out."""
        sizes, per_tile = self.sizes, self.amounts.config.tokens_per_tile
        question = sizes.question + AROUND
        large = sizes.large_tiles * per_tile + question
        return {
            "tile": self._compute(self.amounts.tile),
            "first_token": self._first(1, per_tile + question),
            "first_token_large": self._first(sizes.large_tiles, large),
            "known_picture": max(
                self._compute(self.amounts.prompt(question, per_tile)), self._read(self._weights() + self._kv(per_tile))
            ),
            "decode": 1 / self._step(1, question + sizes.answer // 2),
            "decode_large": 1 / self._step(1, large + sizes.answer // 4),
            "streams_text": self._streams(0, sizes.text_prompt + AROUND, sizes.text_answer),
            "streams_picture": self._streams(1, per_tile + question, sizes.picture_answer),
        }

    def _first(self, tiles: int, tokens: int) -> float:
        return self._compute(tiles * self.amounts.tile + self.amounts.prompt(tokens))

    def _step(self, sequences: int, context: int) -> float:
        """Of decoding: weights are read once for all sequences, and multiplied with each."""
        read = self._read(self._weights() + sequences * self._kv(context))
        return max(read, self._compute(2 * sequences * (self.amounts.layer_weights + self.amounts.head)))

    def _streams(self, tiles: int, prompt: int, answer: int) -> float:
        """Tokens a second of all streams: their prompts, then their steps."""
        sequences = self.sizes.streams
        prompts = sequences * self._first(tiles, prompt)
        return sequences * answer / (prompts + (answer - 1) * self._step(sequences, prompt + answer // 2))

    def _weights(self) -> float:
        return self.weight_bytes * (self.amounts.layer_weights + self.amounts.head)

    def _kv(self, tokens: int) -> int:
        return self.amounts.kv_bytes(tokens, self.cache_bytes)

    def _compute(self, operations: float) -> float:
        return operations / self.rates.operations

    def _read(self, size: float) -> float:
        return size / self.rates.read
