"""Wire types between engine and runner: the plan goes down, sampled tokens come up.

All plain data: a plan can be pickled to another process, and a test can write one by hand. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tilewise.sampling_params import SamplingParams
from tilewise.speculation import SpeculativeConfig
from tilewise.types import SampledToken, TokenIds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Admission:
    """The admission of a sequence to a slot. `token_ids` are the prompt and, after a preemption, the answer so far."""

    slot: int
    token_ids: tuple[int, ...]
    num_prompt: int
    sampling: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    bad_words: tuple[TokenIds, ...] = ()
    """Token sequences whose last token may not complete them in the answer."""


@dataclass(frozen=True, slots=True)
class BlockGrant:
    """KV blocks appended to a slot's block table from entry `first` on."""

    slot: int
    first: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """An order to encode one tile (uint8 `[size, size, 3]`) into a page of the tile pool."""

    digest: bytes
    pixels: NDArray[np.uint8]
    page: int


@dataclass(frozen=True, slots=True)
class RowsJob:
    """An order to write the rows of a tile that came encoded (`types.TileRows`) into a page of the tile pool."""

    digest: bytes
    rows: NDArray[Any]
    page: int


@dataclass(frozen=True, slots=True)
class TileUse:
    """`rows` rows of the tile in `page`, from row `first` on, stand in the prompt from `position` on."""

    position: int
    page: int
    first: int
    rows: int


class Work(NamedTuple):
    """An order to compute tokens [start, start + count) of a slot and, if `samples`, to choose the token after them.

    The last `drafts` of them are guesses. A token is then chosen behind the last known token and behind every guess,
    and only those count that stand behind right guesses: so the answer is what it would be without guessing.

    A tuple, because hundreds are made in a step, and a frozen dataclass takes three times as long.
    """

    slot: int
    start: int
    count: int  # type: ignore[assignment]  # in place of tuple.count, which nobody needs
    samples: bool
    tiles: tuple[TileUse, ...] = ()
    drafts: int = 0
    draft_ids: TokenIds = ()
    """The guesses; empty where a draft model of the runner makes them."""
    masks: NDArray[np.int32] | None = None
    """Masks of a structured answer, [drafts + 1, words]: the tokens that may be chosen at each place, one bit each
    (`types.Matcher.masks`)."""

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def known_stop(self) -> int:
        """Position behind the last token that is no guess."""
        return self.stop - self.drafts

    @property
    def num_choices(self) -> int:
        """Number of places at which a token is chosen."""
        return self.drafts + 1 if self.samples else 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The plan of one step, as the engine gives it to the runner."""

    index: int
    admissions: tuple[Admission, ...]
    grants: tuple[BlockGrant, ...]
    encode: tuple[EncodeJob, ...]
    """Tiles to encode, behind those of earlier plans."""
    work: tuple[Work, ...]
    encode_budget: float | None = None
    """Tiles to encode after this step's tokens; 0.25 is a quarter of the tower's layers for one tile. None: go on until
    at least one batch is finished."""
    row_jobs: tuple[RowsJob, ...] = ()

    @property
    def empty(self) -> bool:
        """True if there is nothing new to compute, and nothing to write into the tables either."""
        return not (self.work or self.encode or self.row_jobs or self.admissions)


@dataclass(frozen=True, slots=True)
class EncodedTile:
    """A tile that is in its page now."""

    digest: bytes
    score: float | None = None
    """Score of a Flash model's router: the probability that a quarter of the rows says enough."""
    finite: bool = True
    """False if numbers are checked, and some of its rows are NaN or infinite."""


PromptScores = dict[int, tuple[SampledToken, ...]]
"""The prompt's own tokens behind those that were computed, with their log-probabilities, by slot."""


class StepSeconds(NamedTuple):
    """The times of a step that shares a device between tokens and tiles."""

    tokens: float
    """Seconds of computing and choosing this step's tokens."""
    tile: float
    """Seconds that encoding one tile takes, as measured of late."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step: new tokens of each sampling slot, one more than guesses were right, and the tiles that are
    in their pages now, of this plan or of earlier ones."""

    sampled: dict[int, tuple[SampledToken, ...]]
    encoded: tuple[EncodedTile, ...]
    prompt_scores: PromptScores = field(default_factory=dict)
    seconds: StepSeconds | None = None
    """Times of a step that computes its tokens and its tiles one after the other; None = of any other step."""
    not_finite: dict[int, str] = field(default_factory=dict)
    """Slots whose numbers are NaN or infinite, if these are checked, with the name of the tensor. Their tokens are
    those before."""


Handle = Callable[[], StepResult]
"""A function that waits for the result of a launched step. What goes wrong in the step is raised by it."""


class Runner(Protocol):
    """A runner of steps: this process, other processes, or a test's fake."""

    def launch(self, plan: StepPlan) -> Handle: ...

    def check(self) -> None:
        """Raise RankDied if a process that computes for this one is gone; asked while there is nothing to launch."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FlashRule:
    """The rule by which a Flash model shortens prompts: tiles that its router finds easy take `tokens` rows instead of
    all.

    A tile is easy if its score is above the `relative_threshold` quantile of the scores of its request, and at least
    `absolute_threshold`. Source: `generate_flash` of the checkpoints' modeling_internvl_chat.py.
    """

    tokens: int
    relative_threshold: float
    absolute_threshold: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes that scheduling has to respect, in tokens, blocks, pages and tiles."""

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    """KV blocks, including block 0, the dummy that padding writes to."""
    tokens_per_tile: int
    tile_pages: int
    encode_budget: float
    """Tiles encoded in one step while something decodes; where there is `encode_seconds`, only until it is known how
    long a tile takes."""
    tiles_in_flight: int
    """Most tiles that are given to the runner before they are in their pages."""
    encode_seconds: float | None = None
    """Seconds in which tiles are encoded behind a step while something decodes, up to four times as many if its tokens
    took longer; None = as many tiles as `encode_budget` says."""
    flash: FlashRule | None = None
    prefix_caching: bool = True
    priorities: bool = False
    """True if requests' priorities count; else the first to come is the first served."""
    speculation: SpeculativeConfig | None = None
    """Rule by which several tokens are guessed and verified in one step (Leviathan et al. 2023, Saxena 2023)."""
    batch_invariant: bool = False
    """True if a request's logits are bit by bit the same in any batch."""
    kv_cache_dtype: str | None = None
    """int8 or fp8, with a scale for each token and head; None = keys and values are kept as they are computed."""
    tile_batches: tuple[int, ...] = (1,)
    """Tiles of a batch, the largest number first; batch-invariant ones are encoded alone anyway."""
    check_numerics: bool = False
    """True if a sequence whose numbers are NaN or infinite ends with an error."""
    graph_sizes: tuple[int, ...] = ()
    """Sizes of captured steps in sequences, to which others are filled up; empty = steps are captured as they come."""

    @property
    def blocks_a_sequence(self) -> int:
        """KV blocks of a sequence as long as the context."""
        return -(-self.max_model_len // self.block_size)

    @property
    def longest_sequence(self) -> int:
        """Most tokens of prompt and answer together: those of the context, and of the KV cache but for the dummy."""
        return min(self.max_model_len, (self.num_blocks - 1) * self.block_size)
