"""The contract of a platform and of its ops.

`reference.ReferenceOps` implements every op in plain torch; it is the oracle of the tests and what a platform falls
back to. A platform overrides the ops it does better.

Shape letters: N tokens, S sequences, A query heads, K key/value heads, D head width, B blocks, P tokens a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from tilewise.platforms.draw import Draw
from tilewise.platforms.forms import Form
from tilewise.platforms.kv_cache import LayerCache
from tilewise.platforms.transfers import Streams

INVARIANT_ROWS = 32
"""Rows of a panel, which batch-invariant ops compute at a time. Every product of the decoder then has this many rows,
and the token at position p of its sequence stands in row p % INVARIANT_ROWS. Every 32nd row of a matrix, whatever its
width and dtype, starts on a cache line."""


SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702
"""Bound on gate and up of `Ops.clamped_swiglu`, and the factor on the gate in its sigmoid."""


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """The places of the tokens of a batch in their sequences and in the paged cache."""

    query_starts: Tensor
    """int64 [S + 1], the first token of each sequence among the tokens of the step."""
    seq_lens: Tensor
    """int64 [S], the tokens of each sequence after this step."""
    block_table: Tensor
    """int64 [S, blocks], the block ids of each sequence."""
    kv_slots: Tensor
    """int64 [N], the flat cache position of each row: block id * P + offset."""
    token_rows: Tensor | None = None
    """int64 [T], the row of each token of the step; None = they stand in order, without padding."""
    counts: Sequence[int] | None = None
    """Tokens of each sequence in this step, as the host knows them; None = the device has to be asked."""
    lengths: Sequence[int] | None = None
    """`seq_lens`, as the host knows them; None = the device has to be asked, as in a captured step, each replay of
    which has other lengths."""
    longest: int | None = None
    """Upper bound of `seq_lens`, for kernels that read those on the device to prepare for; None = the largest."""

    @property
    def host_counts(self) -> Sequence[int]:
        if self.counts is not None:
            return self.counts
        found: list[int] = self.query_starts.diff().tolist()
        return found

    @property
    def most_tokens(self) -> int:
        """Upper bound of the tokens of a sequence."""
        return max(self.host_lengths) if self.longest is None else self.longest

    @property
    def host_lengths(self) -> Sequence[int]:
        if self.lengths is not None:
            return self.lengths
        found: list[int] = self.seq_lens.tolist()
        return found


@dataclass(frozen=True, slots=True)
class AttentionSize:
    """The sizes of one attention that its memory depends on: over one sequence, or over several tiles at once."""

    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    itemsize: int
    """Bytes of a number."""
    plain: bool = True
    """True if there is neither a window nor sinks."""
    tiles: int = 1
    quantised: bool = False
    """True if keys and values come from a cache of 8 bits."""


class Weight(Protocol):
    """A matrix [out, in] and its bias, in the form in which a platform keeps them to multiply with."""

    @property
    def nbytes(self) -> int:
        """Bytes that the weight keeps, bias included."""
        ...

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        """Multiply x [..., in] by the matrix and add the bias -> [..., out]."""
        ...


class Use(Enum):
    """The use of a matrix beside multiplying, on which the form may depend in which a platform keeps it."""

    ALONE = "nothing else"
    SHARED = "kept for something else as well"
    EXPERT = "one of many experts, which a device may multiply together"


class Store(Protocol):
    """A function that turns a matrix into the form in which it is kept to multiply with."""

    def __call__(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Keep a matrix in parts [some of out, in], one below the other and each in its form, and its bias [out].

        Meta tensors, which are shapes without numbers, make a weight of meta tensors.
        """
        ...


class Ops(Protocol):
    """The functions that a device may compute in its own way: about twenty, and nothing else of a model."""

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Keep a matrix in the form that it has, in whatever order the device reads best: a `Store`."""
        ...

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """Keep floats rounded to int8, with a scale for each output, to be multiplied with rows that are rounded as
        they come; keep other forms as they are: a `Store`.
        """
        ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x [..., in] @ weight [out, in].T + bias [out]."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps), over the last axis in float32 and cast back, times weight."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor: ...

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU of x in its exact (erf) form."""
        ...

    def linear_gelu(self, x: Tensor, weight: Weight) -> Tensor:
        """Return `gelu` of x [..., in] multiplied by a weight."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Multiply silu of the first half by the second: [..., 2F] -> [..., F]."""
        ...

    def clamped_swiglu(self, gate_up: Tensor) -> Tensor:
        """Return (up + 1) * gate * sigmoid(1.702 * gate): [..., 2F] -> [..., F].

        The first half, gate, is clamped to at most 7, and the second, up, to between -7 and 7.
        Source: `swiglu` of openai/gpt-oss.
        """
        ...

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        """Return x + scale [width] * y, or x + y where scale is None."""
        ...

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of `add_scaled`, and `rms_norm` of it."""
        ...

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of `add_scaled`, and `layer_norm` of it."""
        ...

    def rope_into_cache(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
    ) -> Tensor:
        """Rotate query [N, A, D] and key [N, K, D] by cos, sin [N, D/2] (float32), halves paired (i, i + D/2).

        Rotated keys, and values [N, K, D], are written to the layer's cache [2, B, P, K, D] in the form in which it
        keeps them; rotated queries are returned.
        """
        ...

    def paged_attention(
        self,
        query: Tensor,
        cache: LayerCache,
        layout: PagedLayout,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend causally from query [N, A, D] to the cached tokens of each row's own sequence -> [N, A, D].

        A query sees `window` tokens back at most, itself included; `sinks` [A] are logits without a value.
        """
        ...

    def paged_scratch(self, size: AttentionSize) -> int:
        """Return the bytes that `paged_attention` takes for one sequence at most, beside its arguments and result."""
        ...

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend from every query [tiles, n, A, D] to all key, value [tiles, m, A, D] of its tile -> query's shape."""
        ...

    def dense_scratch(self, size: AttentionSize) -> int:
        """Return the bytes that `dense_attention` takes at most, beside its arguments and result."""
        ...

    def moe_experts(
        self,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        gate_up: Sequence[Weight | None],
        down: Sequence[Weight | None],
        activation: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Send x [N, H] through its chosen experts (int64 [N, k]), and sum up what they give by weights [N, k].

        An expert's gate_up is [2F, H] and its down [H, F]; activation maps [n, 2F] -> [n, F]. Experts that are None
        add nothing: another rank has them.
        """
        ...

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Draw token ids int64 [draws], each by its own settings, from float32 logits [all rows, vocabulary]."""
        ...

    def patchify(self, pixels: Tensor, patch: int, mean: Tensor, std: Tensor) -> Tensor:
        """Cut uint8 [tiles, H, W, 3] into normalised patches, float32 [tiles, H/p * W/p, 3*p*p], channel-major."""
        ...

    def scatter_rows(self, target: Tensor, rows: Tensor, source: Tensor, source_rows: Tensor) -> None:
        """Set target[rows] = source[source_rows]."""
        ...


OPS = tuple(name for name in vars(Ops) if not name.startswith("_") and not name.endswith("_scratch"))
"""Names of the ops, without the functions that tell how much memory one takes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The implementation that an op has on a platform, and why."""

    op: str
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A platform's report on itself, for `tilewise doctor`."""

    facts: dict[str, str]
    choices: tuple[Choice, ...]


class NotCapturable(Exception):
    """A step does something that could not be repeated, as the message says, so it cannot be captured."""


class Graph(Protocol):
    """A captured step, which can be computed again."""

    @property
    def result(self) -> Tensor:
        """Result of the last time that the step was computed."""
        ...

    def replay(self) -> Tensor:
        """Compute the step again from what its inputs hold now; the result takes the place of the last one."""
        ...


Capture = Callable[[Callable[[], Tensor]], Graph]
"""A function that runs a step and keeps it as a graph, whose inputs have to stay where they are; raises
NotCapturable."""

Capturer = Callable[[Ops], Capture | None]
"""The type of `Platform.capturer`."""


class Platform(Protocol):
    """A kind of device to compute on: its ops, its memory, and how work is best cut for it."""

    name: str
    device: torch.device
    shared_memory: bool
    """True if the ranks of one machine share its memory; else each has a device of its own."""
    backend: str
    """Name of the backend by which torch.distributed sums over ranks."""
    beside_host: bool
    """True if the device computes while the host does something else."""
    tile_batches: tuple[int, ...]
    """Numbers of tiles that may be encoded at a time, the largest first."""
    graph_sizes: tuple[int, ...]
    """Numbers of sequences for which steps are captured; other steps are filled up to the next one. Empty = steps are
    captured as they come."""
    utilization: float | None
    """Share of the device's memory that an engine takes by default; None = half of what is free, within 4 GiB."""

    @property
    def resize_kernels(self) -> str | None:
        """Path of a shared object whose kernels resize pictures (`tilewise.resize`), if there is one."""
        ...

    def ops(self, batch_invariant: bool = False) -> Ops:
        """Return the ops of this device.

        Batch-invariant ones compute a row's numbers bit by bit the same, whatever stands in other rows: for rows of the
        decoder that come in panels, and for tiles that come one at a time.
        """
        ...

    def check_ranks(self, ranks: int) -> None:
        """Raise InvalidConfig unless so many ranks of this machine, the first of them here, find a device each."""
        ...

    def streams(self) -> Streams | None:
        """Return the queues for steps and for tiles beside them; None where a device does one thing after the other."""
        ...

    def capturer(self, ops: Ops) -> Capture | None:
        """Return a function that captures steps which these ops compute; None where they cannot be captured.

        Its steps share one memory for what passes between their kernels, so one of them may run at a time.
        """
        ...

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        """Return the dtype that `--dtype auto` means for a checkpoint of this dtype and number of parameters."""
        ...

    def diagnose(self) -> Diagnosis:
        """Report what this device is, and how it will compute."""
        ...

    def total_memory(self) -> int:
        """Return the bytes of memory that there are."""
        ...

    def free_memory(self) -> int:
        """Return the bytes of memory that can still be taken."""
        ...
