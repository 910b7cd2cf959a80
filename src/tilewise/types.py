"""Public and wire types: what goes into the engine and what comes out. Standard library only."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from tilewise.errors import NotFinite, TilewiseError
from tilewise.sampling_params import SamplingParams
from tilewise.timing import EngineMoments, InputTiming, RequestMetrics, Timing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Grid = tuple[int, int]
"""Tiles of a picture: (columns, rows)."""
TokenIds = tuple[int, ...]
Detail = Literal["auto", "low", "medium", "high", "original"]
"""Closeness at which a picture is to be looked at, as OpenAI's API names it."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One square of a picture: uint8 pixels `[size, size, 3]` and their digest (16 bytes over pixels and shape)."""

    digest: bytes
    pixels: NDArray[np.uint8] = field(repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes


@dataclass(frozen=True, slots=True)
class TileRows:
    """A tile that was encoded elsewhere: its rows `[tokens, hidden]` and their digest (16 bytes over rows and dtype).

    The rows are float32, float16, or uint16 with the bits of bfloat16, which numpy does not have.
    """

    digest: bytes
    rows: NDArray[Any] = field(repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        return self.rows.nbytes


AnyTile = Tile | TileRows


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A picture as the engine sees it: tiles in order, thumbnail last, and the prompt span their rows fill."""

    tiles: tuple[AnyTile, ...]
    grid: Grid
    """Tiles in columns and rows; a picture that came encoded has its tiles in one row."""
    original_size: tuple[int, int]
    """(width, height) in pixels; zeros for a picture that came encoded."""
    start: int
    """Position of the first image token in the prompt; each tile fills `tokens_per_tile` from there on."""


Thinking = tuple[int, int]
"""The tokens between which an answer thinks: `<think>` and `</think>`."""


class Matcher(Protocol):
    """The state of one structured answer, which is followed token by token."""

    @property
    def finish_reason(self) -> str | None:
        """ "stop" once an end token was accepted, "error" if the answer cannot be followed any further."""

    def masks(self, drafts: TokenIds = ()) -> NDArray[np.int32]:
        """Return the tokens that may come next, and behind each of `drafts`, which must be allowed: `[drafts + 1,
        words]`.

        One bit a token (bit `id % 32` of word `id // 32` of `ceil(vocabulary / 32)`). At least one is set in the first
        row while there is no `finish_reason`.
        """

    def count_allowed(self, drafts: TokenIds) -> int:
        """Return how many of these tokens may come next, one after the other, before the answer ends."""

    def accept(self, token_id: int) -> None:
        """Take in the next token of the answer."""


class Grammar(Protocol):
    """A form of answers, ready to be followed."""

    @property
    def unenforced(self) -> tuple[str, ...]:
        """Names of parts of the form that were asked for and cannot be followed token by token."""

    def start(self, ignore_eos: bool, thinking: Thinking | None = None) -> Matcher:
        """Begin an answer; with `thinking` it thinks first, and the form holds behind that."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the engine: token ids with pictures in place, and how to go on from there."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    images: tuple[ImageInput, ...] = ()
    prompt: str | None = None
    stop_ids: frozenset[int] = frozenset()
    """Template's and generation config's end tokens, which `ignore_eos` disables."""
    bad_words: tuple[TokenIds, ...] = ()
    """Token sequences of the sampling's `bad_words`."""
    priority: int = 0
    """Lower is more urgent, where the scheduling policy is by priority."""
    cache_salt: str | None = None
    """Cached prefixes are shared among requests of one salt alone."""
    grammar: Grammar | None = field(default=None, repr=False, compare=False)
    """The form of `sampling.structured_outputs`, compiled."""
    thinking: Thinking | None = None
    """The two tokens of an answer that thinks before its form holds."""
    arrival: float = field(default_factory=time.monotonic)
    inputs: InputTiming = field(default=InputTiming(), repr=False, compare=False)

    @property
    def num_tiles(self) -> int:
        return sum(len(image.tiles) for image in self.images)

    def with_(self, **changes: Any) -> Request:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of one token (natural log), before temperature and truncation, and its rank (1 = likeliest)."""

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One token that the device chose; `top` are the likeliest alternatives in order, or those asked for by id."""

    token_id: int
    logprob: float | None = None
    rank: int | None = None
    top: tuple[tuple[int, float], ...] = ()
    top_ranks: tuple[int, ...] = ()
    """Ranks of alternatives that were asked for by id; empty where they are 1, 2, ..."""


class SequenceFailure(NamedTuple):
    """The end of a sequence whose numbers are not finite; no token comes with it."""

    request_id: str
    error: NotFinite
    finish_reason: str = "error"


class TokenDelta(NamedTuple):
    """One new token of a request. An aborted request just ends, without one."""

    request_id: str
    token: SampledToken
    finish_reason: str | None
    stop_reason: int | None
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were cached when the sequence was first admitted."""
    image_tokens_saved: int = 0
    """Rows that a Flash model's router left out of the prompt."""
    prompt_scores: tuple[SampledToken, ...] = ()
    """The prompt's tokens from the second on, with log-probabilities; if asked for, and with the first token only."""
    time: float = 0.0
    """Moment at which the token was known, on the monotonic clock."""
    moments: EngineMoments | None = None
    """The sequence's way to its first token; None with later ones."""
    encoded_tiles: tuple[int, ...] = ()
    """Numbers of the prompt's tiles that were not there and had to be encoded; with the first token only."""
    preemptions: int = 0
    """Times that the sequence has given its blocks back so far."""


SequenceDelta = TokenDelta | SequenceFailure
"""The effect of a step on a sequence."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    """Prompt tokens as computed: without the rows that a Flash model's router saved."""
    completion_tokens: int
    image_tokens: int
    tiles: int
    image_tokens_saved: int = 0
    """Rows that a Flash model's router left out."""
    cached_tokens: int = 0
    """Tokens of the prompt that were not computed, since their keys and values were still there."""


@dataclass(slots=True)
class CompletionOutput:
    """One answer, so far or whole. Field names are vLLM's."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    """"stop", "length", or None while it runs; "error" if a structured answer could not be followed to its end, or if
    numbers are checked and were not finite."""
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended it; None for the model's own end token."""
    error: TilewiseError | None = None
    """The error that ended it, where numbers were not finite."""

    # Names of vLLM's that have no value here.
    lora_request = routed_experts = sampling_mask = spec_decode_metrics = weight_versions = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class PictureReport:
    """A report of what became of one picture of a request."""

    size: tuple[int, int]
    """(width, height) in pixels; zeros for a picture that came encoded."""
    grid: Grid
    encoded: tuple[bool, ...]
    """One value a tile: True if it had to be encoded for this request, False if its rows were there already."""


@dataclass(slots=True)
class RequestOutput:
    """All answers to one prompt. Field names are vLLM's, `usage` and `timing` are ours."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    """The prompt as prepared: a Flash model's router may leave some of the image tokens out."""
    outputs: list[CompletionOutput]
    finished: bool
    usage: Usage
    timing: Timing
    num_cached_tokens: int = 0
    pictures: tuple[PictureReport, ...] = ()
    """Pictures and frames in the order of the prompt; empty before the first token."""
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """One entry for each prompt token that was computed; the first has nothing before it, hence None."""

    # Names of vLLM's that have no value here.
    encoder_prompt = encoder_prompt_token_ids = lora_request = kv_transfer_params = ec_transfer_params = None
    num_cache_creation_tokens = prompt_token_id_logprobs = None

    @property
    def metrics(self) -> RequestMetrics:
        """`timing`, under vLLM's names."""
        return RequestMetrics.of(self.timing, self.usage.completion_tokens)

    @property
    def multi_modal_placeholders(self) -> dict[str, Any]:
        """Empty, as the places of pictures are not given out."""
        return {}
