"""Activations that linear layers read, measured on samples that go through the model one block at a time.

Only that block of the model is in memory, and of the samples only what the next block reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Tensor

from tilewise.layers import ResidualStream, RopeTable
from tilewise.models.decoder import DecoderLayer, ForwardContext
from tilewise.models.load import Architecture
from tilewise.models.tile_encoder import PIXEL_MEAN, PIXEL_STD, Projector, VisionBlock, VisionTower, pixel_shuffle
from tilewise.parallel.mesh import Mesh
from tilewise.platforms import current_platform
from tilewise.platforms.forms import Form, StaticRows
from tilewise.platforms.kv_cache import PagedLayout
from tilewise.platforms.ops import Ops
from tilewise.platforms.weights import Use, Weight, as_it_came
from tilewise.quantize.modules import Places
from tilewise.types import Request, Tile
from tilewise.weights.checkpoint_source import CheckpointSource
from tilewise.weights.files import WeightFiles
from tilewise.weights.view import SourceOver, StoredLinear, View

MOST_INPUTS = 8192
"""Most inputs whose products with each other are kept; a wider layer is cut into runs of this many inputs."""
_EXPERT = re.compile(r"\.experts\.\d+\.(gate_proj|up_proj)$")
_Part = TypeVar("_Part")
_BLOCK = 16
"""Tokens of one KV block."""


@dataclass
class MeasuredInputs:
    """Statistics of all rows of activations that a linear layer has read."""

    moments: list[Tensor] | None
    """Sums of x^T x, float32 [width, width] for each run of inputs, empty before any rows; None = not asked for."""
    lows: Tensor | None = None
    highs: Tensor | None = None
    """float32 [width], each input's highest number, or 0 if that is below 0 (`lows`: its lowest, or 0 if that is above
    0); None = nothing was read."""

    def add(self, x: Tensor) -> None:
        """Take in the rows of x [..., in]."""
        rows = x.flatten(0, -2)
        lows, highs = rows.amin(0).float().clamp(max=0), rows.amax(0).float().clamp(min=0)
        self.lows = lows if self.lows is None else torch.minimum(self.lows, lows)
        self.highs = highs if self.highs is None else torch.maximum(self.highs, highs)
        if self.moments is None:
            return
        if not self.moments:
            widths = [len(some) for some in torch.empty(rows.shape[1], 0).split(MOST_INPUTS)]
            self.moments += [torch.zeros(width, width) for width in widths]
        for total, some in zip(self.moments, rows.split(MOST_INPUTS, 1), strict=True):
            numbers = some.float()
            total.addmm_(numbers.T, numbers)

    def largest_by_input(self) -> Tensor | None:
        """Return the largest magnitude of each input, float32 [width]; None = nothing was read."""
        return None if self.lows is None or self.highs is None else torch.maximum(-self.lows, self.highs)

    def static_rows(self, divisors: Tensor | None = None) -> StaticRows:
        """Return a scale and an offset by which everything measured, and zero, fits into int8.

        `divisors` float32 [width]: the inputs are divided by these first, as smoothing does.
        """
        low = high = 0.0
        if self.lows is not None and self.highs is not None:
            by = 1.0 if divisors is None else divisors
            low, high = float((self.lows / by).min()), float((self.highs / by).max())
        scale = max((high - low) / 255, 1e-12)
        # Rounded to float32, as the files keep it, so that the offset is computed with the scale that readers will use.
        scale = float(torch.tensor(scale, dtype=torch.float32))
        return StaticRows(scale, max(-128, min(127, round(-128 - low / scale))))


@dataclass(frozen=True, slots=True)
class MeasuredWeight:
    """A weight that measures the activations it is multiplied with."""

    weight: Weight
    inputs: MeasuredInputs

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        if x.numel():
            self.inputs.add(x)
        return self.weight.apply(x, ops)


@dataclass
class MeasuringSource(SourceOver):
    """A source of weights that measure their inputs; it notes which tensors were read, and for which weight."""

    source: CheckpointSource
    measure: Callable[[], MeasuredInputs] | None = None
    """Factory of what measures a layer's inputs; None = nothing is measured."""
    inputs: dict[str, MeasuredInputs] = field(default_factory=dict)
    """Measurements by internal module name."""
    names: list[str] = field(default_factory=list)
    """Internal names of the tensors that were read."""
    _pending: list[str] = field(default_factory=list)

    def read(self, name: str, shape: Sequence[int]) -> Tensor:
        self.names.append(name)
        return super().read(name, shape)

    def linear(self, module: str, outputs: int, inputs: int, bias: bool) -> StoredLinear:
        self.names.append(f"{module}.weight")
        self._pending.append(module)
        return super().linear(module, outputs, inputs, bias)

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Act as a `Store`: make one weight of the modules that were read since the last call."""
        modules, self._pending = self._pending, []
        weight = as_it_came(parts, bias)
        if self.measure is None or not modules:
            return weight
        return MeasuredWeight(weight, self._measured(modules, self.measure))

    def _measured(self, modules: Sequence[str], measure: Callable[[], MeasuredInputs]) -> MeasuredInputs:
        """Return the one measurement that these modules, which read the same input, share.

        Gate and up projections of all experts of a layer read its tokens, so they share one as well.
        """
        key = _EXPERT.sub(r".experts.all", modules[0])
        found = self.inputs.get(key)
        if found is None:
            found = self.inputs[key] = measure()
        self.inputs |= dict.fromkeys(modules, found)
        return found


def sample_steps(architecture: Architecture, requests: Sequence[Request]) -> int:
    """Return how many steps the samples take: one for each vision block and tile, and each decoder block and sample."""
    config, tiles = architecture.config, sum(request.num_tiles for request in requests)
    return tiles * config.vision.num_layers + len(requests) * config.decoder.num_layers


class SampleActivations:
    """Samples that go through the model one stage after the other, to measure what the modules of each stage read.

    A stage is a block of the tower or of the decoder, or the projector, by its internal name. Stages have to be asked
    for in the order of the computation, as samples do not go back.
    """

    def __init__(
        self,
        architecture: Architecture,
        files: WeightFiles,
        requests: Sequence[Request],
        moments: bool,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`advance` is called with 1 after each of the `sample_steps`."""
        self._architecture, self._files, self._requests = architecture, files, requests
        self._advance = advance
        self._places = Places.of(architecture, files.names)
        self._source = CheckpointSource(files, self._places.locate, architecture.dtype)
        self._moments = moments
        self._ops = current_platform("cpu").ops()
        tiles: list[Tensor] = []
        self._stages = chain(self._walk_tower(tiles), self._walk_decoder(tiles))
        self._wanted, self._inputs = "", dict[str, MeasuredInputs]()

    def inputs_of(self, stage: str, reader: str) -> MeasuredInputs:
        """Return what the internal module `reader` of a stage read; a module that nothing reached has read nothing."""
        if self._wanted != stage:
            self._wanted, self._inputs = stage, {}  # the last stage's measurements take memory that this one needs
            self._inputs = next(inputs for name, inputs in self._stages if name == stage)
        return self._inputs.get(reader) or self._measure()

    def _measure(self) -> MeasuredInputs:
        return MeasuredInputs([] if self._moments else None)

    def _walk_tower(self, rows: list[Tensor]) -> Iterator[tuple[str, dict[str, MeasuredInputs]]]:
        """Compute tower and projector, and append the projector's rows of each tile [tokens, hidden] to `rows`.

        Each stage is yielded with what its modules read, which is measured only if the stage is the wanted one.
        """
        config = self._architecture.config
        pixels = [torch.from_numpy(tile.pixels.copy()) for tile in _tiles(self._requests)]
        if not pixels:
            return
        mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
        with_none = replace(config.vision, num_layers=0)
        with self._part("", lambda view: VisionTower(view.at("vision"), with_none, config.tile_size)) as (tower, _):
            features = [tower.embed(tile[None], mean, std, self._ops) for tile in pixels]
        for number in range(config.vision.num_layers):
            name = f"vision.layers.{number}"
            with self._part(name, lambda view: VisionBlock(view, config.vision)) as (block, inputs):
                for place, x in enumerate(features):
                    stream = ResidualStream(x)
                    block(stream, self._ops)
                    features[place] = stream.sum(self._ops)
                    self._advance(1)
            yield name, inputs
        with self._part("projector", lambda view: Projector(view, config)) as (projector, inputs):
            for x in features:
                shuffled = pixel_shuffle(x[:, 1:], config.shuffle_block, config.shuffle_version)
                rows.append(projector(shuffled, self._ops)[0])
        del features
        yield "projector", inputs

    def _walk_decoder(self, tiles: list[Tensor]) -> Iterator[tuple[str, dict[str, MeasuredInputs]]]:
        config = self._architecture.config.decoder
        longest = max(len(request.prompt_ids) for request in self._requests)
        rope = RopeTable(config.rope, config.head_dim, longest, torch.device("cpu"))
        samples = self._embedded(tiles)
        cache_shape = (2, -(-longest // _BLOCK), _BLOCK, config.num_kv_heads, config.head_dim)
        # One KV cache serves all samples and blocks: each call writes the keys and values of the whole sample before it
        # reads them.
        cache = torch.zeros(cache_shape, dtype=self._architecture.dtype)
        for number in range(config.num_layers):
            name = f"language.model.layers.{number}"
            with self._part(name, partial(self._block, number)) as (block, inputs):
                for place, x in enumerate(samples):
                    cos, sin = rope.at(torch.arange(len(x)))
                    stream = ResidualStream(x)
                    block(stream, cache, ForwardContext(cos, sin, _layout(len(x)), self._ops))
                    samples[place] = stream.sum(self._ops)
                    self._advance(1)
            yield name, inputs

    def _embedded(self, tiles: list[Tensor]) -> list[Tensor]:
        """Return the rows that the first decoder block reads of each sample [tokens, hidden]."""
        config = self._architecture.config.decoder
        sizes = (config.vocab_size, config.hidden_size)
        with self._part("language.model", lambda view: view.tensor("embed_tokens.weight", *sizes)) as (table, _):
            samples = [table[torch.tensor(request.prompt_ids)] for request in self._requests]
        waiting = iter(tiles)
        for x, request in zip(samples, self._requests, strict=True):
            for image in request.images:
                rows = torch.cat(list(islice(waiting, len(image.tiles))))
                x[image.start : image.start + len(rows)] = rows
        return samples

    def _block(self, number: int, view: View) -> DecoderLayer:
        return self._architecture.backbone.block(view, self._architecture.config.decoder, number, Mesh())

    @contextmanager
    def _part(self, name: str, build: Callable[[View], _Part]) -> Iterator[tuple[_Part, dict[str, MeasuredInputs]]]:
        """Build a part of the model by internal name; give it with what its modules read, if it is the wanted stage.

        At the end the memory of its tensors is given back; the files are read again if one is used after all.
        """
        source = MeasuringSource(self._source, self._measure if name == self._wanted else None)
        yield build(View(source, f"{name}." if name else "", source.store)), source.inputs
        for place in filter(None, map(self._places.find, source.names)):
            self._files.give_back(place.name)


def _tiles(requests: Iterable[Request]) -> Iterator[Tile]:
    for request in requests:
        for image in request.images:
            yield from (tile for tile in image.tiles if isinstance(tile, Tile))


def _layout(tokens: int) -> PagedLayout:
    """Return the layout of one sequence whose tokens are all computed at once."""
    return PagedLayout(
        query_starts=torch.tensor([0, tokens]),
        seq_lens=torch.tensor([tokens]),
        block_table=torch.arange(-(-tokens // _BLOCK))[None],
        kv_slots=torch.arange(tokens),
    )
