"""Turns options and facts into sizes: every choice is made here once, before a weight is read, and has its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tilewise.config import AUTO_LENGTH, BATCH_ENCODE_BUDGET, EngineConfig
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.plan.memory import DeviceFacts, MemoryPlan, ModelFacts
from tilewise.step import Limits

_NO_GRAPHS = {True: "no graphs are captured", False: "nothing here captures graphs"}


@dataclass(frozen=True, slots=True)
class Resolved:
    """The sizes and choices that an engine runs with. `reasons` has a line for each choice."""

    limits: Limits
    overlap: bool
    """True if the next step is planned while one runs."""
    graphs: bool
    """True if steps are captured once and replayed: the device can, and nothing that was asked for forbids it."""
    reasons: dict[str, str]
    resize_kernels: str | None = None
    """A shared object of the engine's host that resizes pictures (`tilewise.resize`)."""


def resolve(
    config: EngineConfig, model: ModelFacts, device: DeviceFacts, environment: Environment = Environment()
) -> Resolved:
    """Make every choice. Raises InvalidConfig, naming what would fit, if the model or one full sequence does not."""
    memory = planned_memory(config, model, device, environment)
    memory.check()
    reasons = {"max_model_len": _about_context(memory), **memory.reasons(), **dict(_of_options(config, model, device))}
    if why := why_batch_invariant(config, environment):
        reasons["batch_invariant"] = f"on: {why}; decoding costs several times the work, prompts about twice"
    if not device.graph_sizes:
        for name, usual in (("max_graph_size", EngineConfig.max_graph_size), ("lazy_graphs", EngineConfig.lazy_graphs)):
            if getattr(config, name) != usual:
                reasons[name] = "without effect, for GPUs: here a step is captured when one like it comes first"
    graphs = memory.captures and not why
    if graphs:
        reasons["graphs"] = "passes of a token or a few a sequence are captured once and replayed"
    return Resolved(
        limits=_limits(memory, batch_invariant=bool(why)),
        overlap=_overlap(config, device, reasons),
        graphs=graphs,
        reasons=reasons,
        resize_kernels=device.resize_kernels,
    )


def _of_options(config: EngineConfig, model: ModelFacts, device: DeviceFacts) -> Iterator[tuple[str, str]]:
    """Yield reasons for what the options and the model itself decide, each by its name."""
    if config.enforce_eager:
        yield "enforce_eager", f"eager: {_NO_GRAPHS[device.captures_graphs]}"
    if model.flash is not None:
        yield "flash", f"tiles of {model.tokens_per_tile} or {model.flash.tokens} tokens, as the router chooses"
    if config.speculation is not None:
        wanted = config.speculation
        where = f"by {wanted.model}" if wanted.model else "looked up in what stands before"
        yield "speculation", f"up to {wanted.num_speculative_tokens} tokens are guessed at a time, {where}"
    if config.quantised_kv is not None:
        size = f"{model.kv_bytes_per_token} bytes a token"
        yield "kv_cache_dtype", f"{config.quantised_kv} with a scale for each token and head, {size}"


def planned_memory(
    config: EngineConfig, model: ModelFacts, device: DeviceFacts, environment: Environment
) -> MemoryPlan:
    """Return how memory would be shared out, whether it fits or not.

    Raises InvalidConfig for sequences that are longer than those that the model was trained for.
    """
    trained = MemoryPlan(config, model, device, model.trained_length, environment)
    return replace(trained, context=_context(trained))


def _limits(memory: MemoryPlan, batch_invariant: bool) -> Limits:
    config, model, device = memory.config, memory.model, memory.device
    budget = streaming_encode_budget(model) if config.encode_budget is None else config.encode_budget
    return Limits(
        max_num_seqs=config.max_num_seqs,
        max_model_len=memory.context,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=memory.block_size,
        num_blocks=memory.num_blocks + 1,  # block 0 is the dummy
        tokens_per_tile=model.tokens_per_tile,
        tile_pages=memory.tile_pages,
        encode_budget=budget,
        encode_seconds=_BESIDE_STREAMS_SECONDS if config.encode_budget is None else None,
        # Two batches for each that encodes: one that it works on, and one that follows it. At least three steps' worth,
        # as with overlapped steps the next one is planned before the last has said which tiles are ready.
        tiles_in_flight=max(
            2 * max(device.tile_batches) * max(config.layout.tensor, config.vision_workers), 3 * math.ceil(budget)
        ),
        flash=model.flash,
        prefix_caching=config.enable_prefix_caching,
        priorities=config.scheduling_policy == "priority",
        speculation=config.speculation,
        batch_invariant=batch_invariant,
        kv_cache_dtype=config.quantised_kv,
        tile_batches=device.tile_batches,
        check_numerics=config.check_numerics,
        graph_sizes=memory.graph_sizes,
    )


_BESIDE_STREAMS_SECONDS = 0.04
"""Seconds by which encoding may lengthen a step that others read along with, however short it is."""
_BESIDE_STREAMS = 24 * 1025 * 1024 * (4 * 1024 + 2 * 4096) // 4
"""Numbers that are multiplied for tiles behind a step that others read along with: a quarter of a tile of the tower of
300M, which takes some 40 ms on two cores."""


def streaming_encode_budget(model: ModelFacts) -> float:
    """Return the tiles whose encoding hardly delays a step, at most as many as where nobody reads along."""
    return min(_BESIDE_STREAMS / model.tile_multiplications, BATCH_ENCODE_BUDGET)


def why_batch_invariant(config: EngineConfig, environment: Environment) -> str | None:
    """Return why batch-invariant mode is on; None if it is not."""
    if config.batch_invariant is not None:
        return "asked for" if config.batch_invariant else None
    return Environment.batch_invariant.name if environment.batch_invariant else None


def _overlap(config: EngineConfig, device: DeviceFacts, reasons: dict[str, str]) -> bool:
    if config.async_scheduling is not None:
        return config.async_scheduling
    on = device.beside_host and config.speculation is None
    why = "the device computes beside the host" if on else "planning would take turns with computing"
    if device.beside_host and not on:
        why = "a sequence that guesses waits for its last token"
    reasons["async_scheduling"] = f"{'on' if on else 'off'}: {why}"
    return on


def _context(plan: MemoryPlan) -> int:
    """Return the tokens of the longest sequence. `plan` is that for the length that the model was trained for."""
    asked, trained = plan.config.max_model_len, plan.context
    if asked is None:
        return trained
    if asked == AUTO_LENGTH:
        return plan.longest(trained) or trained  # which is refused then, with the part that is too large
    if asked > trained and not plan.environment.allow_long:
        raise InvalidConfig(
            f"max_model_len={asked} is longer than the {trained} tokens the model was trained for: "
            "lower it, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 and expect worse answers beyond."
        )
    return asked


def _about_context(plan: MemoryPlan) -> str:
    """Return the length of the longest sequence, and why it is that."""
    whys = {
        None: "the length the model was trained for",
        AUTO_LENGTH: f"the longest that fits, up to the {plan.model.trained_length} the model was trained for",
    }
    return f"{plan.context}: {whys.get(plan.config.max_model_len, 'asked for')}"
