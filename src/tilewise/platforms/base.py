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

PANEL = 32
"""Rows of a panel. In batch-invariant mode every product of the decoder has this many rows, and the token at position p
of its sequence stands in row p % PANEL. A multiple of 32 rows of any width and dtype starts on a cache line."""


SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702
"""Of `Ops.clamped_swiglu`."""


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """Where the tokens of a batch stand in their sequences and in the paged cache."""

    query_starts: Tensor
    """int64 [S + 1] first token of each sequence among the tokens of the step."""
    seq_lens: Tensor
    """int64 [S] tokens of each sequence after this step."""
    block_table: Tensor
    """int64 [S, blocks] block ids of each sequence."""
    kv_slots: Tensor
    """int64 [N] flat cache position of each row: block id * P + offset."""
    token_rows: Tensor | None = None
    """int64 [T] row of each token of the step; None = they stand in order, without padding."""
    counts: Sequence[int] | None = None
    """Tokens of each sequence in this step, as the host knows them; None = the device is asked."""
    lengths: Sequence[int] | None = None
    """`seq_lens`, as the host knows them; None = the device is asked, as in a graph, where each replay has others."""
    longest: int | None = None
    """No sequence is longer: what a kernel that reads `seq_lens` prepares for. None = as `lengths` say."""

    @property
    def host_counts(self) -> Sequence[int]:
        if self.counts is not None:
            return self.counts
        found: list[int] = self.query_starts.diff().tolist()
        return found

    @property
    def most_tokens(self) -> int:
        """No sequence is longer."""
        return max(self.host_lengths) if self.longest is None else self.longest

    @property
    def host_lengths(self) -> Sequence[int]:
        if self.lengths is not None:
            return self.lengths
        found: list[int] = self.seq_lens.tolist()
        return found


@dataclass(frozen=True, slots=True)
class AttentionSize:
    """One attention, as far as its memory goes: over one sequence, or over tiles one beside the other."""

    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    itemsize: int
    """Bytes of a number."""
    plain: bool = True
    """Without window and sinks."""
    tiles: int = 1
    quantised: bool = False
    """Keys and values come from a cache of 8 bits."""


class Weight(Protocol):
    """A matrix in some stored form, which can multiply."""

    @property
    def nbytes(self) -> int:
        """What it keeps, bias included."""
        ...

    def apply(self, x: Tensor, ops: Ops) -> Tensor:
        """x [..., in] -> [..., out], bias included."""
        ...


class Use(Enum):
    """What a matrix that multiplies is, beside that."""

    ALONE = "nothing else"
    SHARED = "kept for something else as well"
    EXPERT = "one of many experts, which a device may multiply together"


class Store(Protocol):
    """Turns a matrix that only multiplies into the form in which it is kept."""

    def __call__(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """The matrix in parts [some of out, in], one below the other and each in its form, and its bias [out].

        Of shapes alone (meta tensors), the same with no numbers in it.
        """
        ...


class Ops(Protocol):
    """About a dozen functions: everything that a device may do in its own way."""

    def store(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """A `Store`: in the form it has, in whatever order the device reads best."""
        ...

    def store_int8(self, parts: Sequence[Form], bias: Tensor | None, use: Use = Use.ALONE) -> Weight:
        """A `Store`: floats rounded to int8, a scale for each output, to be multiplied with rows rounded as they come;
        other forms as they are.
        """
        ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in] @ weight [out, in].T + bias [out]."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) over the last axis in float32, cast back, times weight."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor: ...

    def gelu(self, x: Tensor) -> Tensor:
        """The exact (erf) form."""
        ...

    def linear_gelu(self, x: Tensor, weight: Weight) -> Tensor:
        """`gelu` of x [..., in] multiplied by a weight."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[..., 2F] -> [..., F]: silu of the first half times the second."""
        ...

    def clamped_swiglu(self, gate_up: Tensor) -> Tensor:
        """[..., 2F] -> [..., F]: (up + 1) * gate * sigmoid(1.702 * gate), gate at most 7, up between -7 and 7.

        Source: `swiglu` of openai/gpt-oss.
        """
        ...

    def add_scaled(self, x: Tensor, scale: Tensor | None, y: Tensor) -> Tensor:
        """x + scale [width] * y, or x + y."""
        ...

    def add_rms_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The sum of `add_scaled`, and `rms_norm` of it."""
        ...

    def add_layer_norm(
        self, x: Tensor, scale: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The sum of `add_scaled`, and `layer_norm` of it."""
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

        Keys go into a layer's cache [2, B, P, K, D], values [N, K, D] beside them, as it keeps them; queries are
        returned.
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
        """Causal attention of query [N, A, D] over the cached tokens of each row's own sequence -> [N, A, D].

        A query sees `window` tokens back at most, itself included; `sinks` [A] are logits without a value.
        """
        ...

    def paged_scratch(self, size: AttentionSize) -> int:
        """Bytes that `paged_attention` takes for one sequence at most, beside its arguments and its result."""
        ...

    def dense_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of all to all: query [tiles, n, A, D] over key, value [tiles, m, A, D] -> the shape of query."""
        ...

    def dense_scratch(self, size: AttentionSize) -> int:
        """The same of `dense_attention`."""
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
        """x [N, H] through its chosen experts (int64 [N, k]), summed with weights [N, k].

        Of each expert, gate_up is [2F, H] and down [H, F]; activation [n, 2F] -> [n, F]. Experts that are None add
        nothing: another rank has them.
        """
        ...

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> Tensor:
        """Token ids int64 [draws], drawn as each asks; logits [all rows, vocabulary] in float32."""
        ...

    def patchify(self, pixels: Tensor, patch: int, mean: Tensor, std: Tensor) -> Tensor:
        """uint8 [tiles, H, W, 3] -> normalised patches, float32 [tiles, H/p * W/p, 3*p*p], channel-major."""
        ...

    def scatter_rows(self, target: Tensor, rows: Tensor, source: Tensor, source_rows: Tensor) -> None:
        """target[rows] = source[source_rows]."""
        ...


OPS = tuple(name for name in vars(Ops) if not name.startswith("_") and not name.endswith("_scratch"))
"""Their names."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which implementation an op has here."""

    op: str
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a platform says of itself."""

    facts: dict[str, str]
    choices: tuple[Choice, ...]


class NotCapturable(Exception):
    """A step does what could not be repeated; the message says what."""


class Graph(Protocol):
    """A step that was captured."""

    @property
    def result(self) -> Tensor:
        """Of the last time that it was computed."""
        ...

    def replay(self) -> Tensor:
        """Compute it again from what its inputs hold now; the result takes the place of the last one."""
        ...


Capture = Callable[[Callable[[], Tensor]], Graph]
"""Runs a step and keeps it as a graph, whose inputs have to stay where they are. Raises NotCapturable."""

Capturer = Callable[[Ops], Capture | None]
"""`Platform.capturer`"""


class Platform(Protocol):
    """One kind of device."""

    name: str
    device: torch.device
    shared_memory: bool
    """Ranks of one machine take their parts of one memory; else each has a device of its own."""
    backend: str
    """What torch.distributed sums over ranks with."""
    beside_host: bool
    """Whether it computes while the host does something else."""
    tile_batches: tuple[int, ...]
    """How many tiles are encoded at a time, the largest number first."""
    graph_sizes: tuple[int, ...]
    """Sequences of captured steps, to which others are filled up; empty = steps are captured as they come."""
    utilization: float | None
    """Share of its memory that an engine takes unless told otherwise; None = half of what is free, within 4 GiB."""

    @property
    def resize_kernels(self) -> str | None:
        """A shared object whose kernels resize pictures (`tilewise.resize`), if there is one."""
        ...

    def ops(self, batch_invariant: bool = False) -> Ops:
        """Batch-invariant ones compute a row's numbers bit by bit the same, whatever stands in other rows: of panels
        of the decoder, and of tiles that come one at a time.
        """
        ...

    def check_ranks(self, ranks: int) -> None:
        """Raises InvalidConfig unless so many ranks of this machine, the first of them here, find a device each."""
        ...

    def streams(self) -> Streams | None:
        """For steps, and for tiles beside them; None where the device does one thing after the other."""
        ...

    def capturer(self, ops: Ops) -> Capture | None:
        """What captures steps that these ops compute, with memory of its own between them; None where nothing does."""
        ...

    def default_dtype(self, checkpoint: torch.dtype, parameters: int) -> torch.dtype:
        """What `--dtype auto` means here for a checkpoint of this dtype and size."""
        ...

    def diagnose(self) -> Diagnosis:
        """What this device is, and how it will compute."""
        ...

    def total_memory(self) -> int:
        """Bytes that there are."""
        ...

    def free_memory(self) -> int:
        """Bytes that can still be taken."""
        ...
