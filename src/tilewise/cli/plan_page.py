"""A plan as people read it, and as JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tilewise.capacity.layouts import LayoutPlan, why
from tilewise.layout import Layout, flags_of
from tilewise.models.load import PARTS
from tilewise.plan.request import Devices
from tilewise.units import in_bytes

if TYPE_CHECKING:
    from tilewise.capacity.deployment import Deployment, Remedy
    from tilewise.capacity.ranks import RankPlan
    from tilewise.cli.plan import PlanLine


_LABEL, _NUMBER, _WIDTH = 30, 12, 118
_SHOWN = 12
"""Most layouts in the table, beside the chosen one."""
_WEIGHTS = {
    "vision tower": ("tower",),
    "projector": ("projector",),
    "embedding and head": ("embedding", "head"),
    "attention": ("attention",),
}


def plan_page(deployment: Deployment, line: PlanLine) -> str:
    sections = [_about(deployment), _memory(deployment), _verdict(deployment), _floors(deployment)]
    if len(deployment.compared) > 1:
        sections.append(_layouts(deployment))
    sections.append(_commands(deployment, line))
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


def _about(deployment: Deployment) -> Iterator[str]:
    plan, model = deployment.chosen, deployment.planner.model
    yield deployment.request.config.model
    yield _row("Sizes", model.files.said)
    weigher, scheme = model.weigher, model.files.scheme or model.config.quantization or model.files.stored
    kept = str(model.dtype).removeprefix("torch.") + (f", quantised: {scheme}" if scheme else "")
    yield _row("Parameters", f"{weigher.parameters / 1e9:.2f} billion in {kept}")
    yield _row("Devices", _devices(deployment))
    asked = "as asked for" if deployment.request.layout is not None else "recommended" if plan.fits else "the nearest"
    yield _row("Layout", f"{_named(plan)} ({asked})")
    config, shape = plan.config, plan.shape
    yield _row(
        "Limits",
        f"{plan.context:,} tokens a sequence, {config.max_num_seqs} sequences, {config.max_num_batched_tokens:,} "
        "tokens a step",
    )
    pictures = f"{shape.pictures} picture{'s' if shape.pictures != 1 else ''} of {shape.tiles} tiles"
    yield _row(
        "Request",
        f"{shape.prompt_tokens:,} tokens of text, {pictures}, {shape.answer_tokens:,} tokens of answer: "
        f"{plan.request_tokens:,} tokens",
    )


def _devices(deployment: Deployment) -> str:
    devices, facts = deployment.request.devices, deployment.planner.facts
    if devices.device.here:
        return f"this machine, {in_bytes(facts.free_bytes)} free of {in_bytes(facts.total_bytes)}"
    each = " each" if devices.count > 1 else ""
    return f"{devices}, {in_bytes(devices.device.memory)}{each}"


def _memory(deployment: Deployment) -> Iterator[str]:
    """Yield the table of memory, with a column for each rank that is unlike those before it."""
    ranks, plan = _unlike(deployment.chosen), deployment.chosen
    if len(ranks) > 1:
        yield _columns("Memory of a rank", [f"rank {rank.rank}" for rank in ranks])
    else:
        yield "Memory" if plan.layout.devices == 1 else "Memory of each rank"
    for name, values, note in _memory_rows(plan, ranks):
        yield _columns(f"  {name}", map(in_bytes, values), note)
    room = plan.memory.allowance
    yield _columns("  = of", [in_bytes(room.bytes)] * len(ranks), f"what is {room.why}")


def _memory_rows(plan: LayoutPlan, ranks: Sequence[RankPlan]) -> Iterator[tuple[str, list[int], str]]:
    experts = plan.model.sizes.decoder.experts
    inside = "MLP" if experts is None else "experts"
    about = "" if experts is None else _experts(plan.layout, experts.count)
    for name, parts in (_WEIGHTS | {inside: ("mlp",)}).items():
        yield name, [sum(rank.parts[part].bytes for part in parts) for rank in ranks], about if name == inside else ""
    if any(rank.draft_bytes for rank in ranks):
        yield "draft model", [rank.draft_bytes for rank in ranks], ""
    memory = plan.memory
    steps = f"a step of {plan.config.max_num_batched_tokens:,} tokens{memory.tiles_in_step}"
    taken = [plan.taken_by(rank) for rank in ranks]
    yield "activations", [found.activations for found in taken], steps
    sizes = plan.memory.graph_sizes
    about = f"captured steps of up to {sizes[-1]} sequences" if sizes else "no memory is kept for them"
    if sizes and memory.tiles_beside:
        about += ", batches of tiles"
    yield "graphs", [found.graphs for found in taken], about
    yield "tile pages", [found.tiles for found in taken], f"{memory.tile_pages:,} encoded tiles"
    tokens = memory.num_blocks * memory.block_size
    yield "KV cache", [found.kv for found in taken], f"{tokens:,} tokens of {memory.model.kv_bytes_per_token:,} bytes"
    if min(found.left for found in taken) >= 0:
        yield "left", [found.left for found in taken], ""
    else:
        yield "lacking", [-found.left for found in taken], ""


def _experts(layout: Layout, count: int) -> str:
    """Say which of a layer's experts a rank has."""
    if layout.tensor == 1:
        return f"all {count} of a layer"
    if layout.experts is None:
        return f"a part of each of the {count} of a layer"
    return f"{len(layout.experts_of(0, count))} of the {count} of a layer"


def _unlike(plan: LayoutPlan) -> list[RankPlan]:
    """Return the ranks whose weights differ from those of the ones before; within a hundredth they are alike."""
    found: list[RankPlan] = []
    for rank in plan.ranks:
        sizes = [other.facts.weight_bytes for other in found]
        if not any(math.isclose(rank.facts.weight_bytes, size, rel_tol=0.01) for size in sizes):
            found.append(rank)
    return found


def _verdict(deployment: Deployment) -> Iterator[str]:
    plan = deployment.chosen
    if not plan.fits:
        yield _sentence(f"It does not fit: {plan.problem}")
        found = deployment.remedies
        if found:
            yield "What would, each by itself:"
        yield from (f"  {remedy}" for remedy in found)
        return
    if plan.request_tokens > plan.context:
        yield "The model fits, and no request of this shape does: raise --max-model-len, or ask for less."
    else:
        yield "It fits."
    trained = plan.memory.model.trained_length
    limit = "as long as the model was trained for" if plan.longest == trained else f"of {trained:,} it was trained for"
    yield _row("Longest context", f"{plan.longest:,} tokens, {limit}", _LABEL)
    yield _row("Requests at once", _at_once(plan), _LABEL)
    yield _row("Pictures in one request", f"{plan.pictures}, of {plan.shape.tiles} tiles each", _LABEL)


def _at_once(plan: LayoutPlan) -> str:
    if plan.request_tokens > plan.context:
        return f"none of this shape: it has more than the {plan.context:,} tokens of a sequence"
    replicas = plan.layout.data
    together = f"{replicas} x {plan.at_once}" if replicas > 1 else str(plan.at_once)
    more = f"; memory would hold {plan.held:,}" if plan.held > plan.at_once else ""
    limited = f" (max_num_seqs{more})" if plan.at_once == plan.config.max_num_seqs else " (what memory holds)"
    return together + limited


def _floors(deployment: Deployment) -> Iterator[str]:
    plan = deployment.chosen
    device = plan.device
    if not plan.fits:
        return
    if plan.first_token is None:
        yield "Floors: the speed of this device is not known; state --bandwidth and --tflops."
        return
    tera = f"{(device.floats or 0) / 1e12:g} TFLOP/s, int8 {(device.int8 or device.floats or 0) / 1e12:g}"
    yield f"Floors (no engine is faster; {(device.bandwidth or 0) / 1e9:,.0f} GB/s, {tera})"
    yield _row("First token", _milliseconds(plan.first_token), _LABEL)
    alone, all_of_them = plan.decode(1), plan.at_once
    yield _row("A decode step, one request", _milliseconds(alone), _LABEL)
    if all_of_them > 1:
        rate = f", {plan.tokens_a_second:,.0f} tokens a second in all" if plan.tokens_a_second else ""
        step = _milliseconds(plan.decode(all_of_them))
        yield _row(f"A decode step, {all_of_them} requests", f"{step}{rate}", _LABEL)


def _layouts(deployment: Deployment) -> Iterator[str]:
    yield _columns(
        f"Layouts of {deployment.request.devices}", ["weights", "KV tokens", "requests", "first token", "decode step"]
    )
    shown = deployment.compared[:_SHOWN]
    if all(plan.layout != deployment.chosen.layout for plan in shown):
        shown = [*shown, deployment.chosen]
    for plan in shown:
        mark = "*" if plan.layout == deployment.chosen.layout else " "
        yield _columns(f"{mark} {_named(plan)}", _of_layout(plan))
    left_out = len(deployment.compared) - sum(plan in deployment.compared for plan in shown)
    if left_out > 0:
        yield f"  and {left_out} more (--json has all)"


def _of_layout(plan: LayoutPlan) -> list[str]:
    weights = in_bytes(plan.weight_bytes)
    if not plan.fits:
        return [weights, "does not fit"]
    tokens = (plan.num_blocks - 1) * plan.memory.block_size * plan.layout.data
    step = plan.decode(max(1, plan.at_once))
    return [
        weights,
        f"{tokens:,}",
        str(plan.at_once * plan.layout.data),
        _milliseconds(plan.first_token),
        _milliseconds(step),
    ]


def _commands(deployment: Deployment, line: PlanLine) -> Iterator[str]:
    best, plan, files = deployment.recommended, deployment.chosen, deployment.planner.model.files
    others = len(deployment.compared) > 1 or (best is not None and best.layout != plan.layout)
    if best is not None and others:
        yield _sentence(f"Recommended: {_named(best)}, as {why(best)}.")
        yield from (f"  {_prompt(command)}" for command in line.commands(best.layout, files.model, files.scheme))
    if plan.fits and not (others and best is not None and best.layout == plan.layout):
        yield "As asked for:" if others else "Start it with:"
        yield from (f"  {_prompt(command)}" for command in line.commands(plan.layout, files.model, files.scheme))


def _prompt(command: str) -> str:
    return command if command.startswith("#") else f"$ {command}"


def _sentence(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _named(plan: LayoutPlan) -> str:
    return flags_of(plan.layout).replace("--enable-expert-parallel", "-ep") or "one rank"


def _row(label: str, value: str, width: int = 13) -> str:
    return f"  {label:<{width - 2}} {value}"


def _columns(label: str, values: Iterable[str], note: str = "") -> str:
    return f"{label:<{_LABEL}}{' '.join(f'{value:>{_NUMBER}}' for value in values)}  {note}".rstrip()


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def record(deployment: Deployment, line: PlanLine) -> dict[str, Any]:
    """Return the plan as JSON, with all numbers in bytes, tokens and seconds."""
    plan, model, devices = deployment.chosen, deployment.planner.model, deployment.request.devices
    best, scheme = deployment.recommended, deployment.planner.model.files.scheme
    return {
        "model": deployment.request.config.model,
        "sizes": model.files.said,
        "parameters": model.weigher.parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": scheme or model.config.quantization or model.files.folder.quantization,
        "devices": _devices_record(devices),
        "fits": plan.fits,
        "problem": plan.problem or None,
        "remedies": [_remedy_record(remedy) for remedy in deployment.remedies],
        "plan": _layout_record(plan) | {"ranks": [_rank_record(plan, rank) for rank in plan.ranks]},
        "layouts": [_layout_record(other) for other in deployment.compared],
        "recommended": None if best is None else flags_of(best.layout),
        "why": None if best is None else why(best),
        "serve": line.commands(plan.layout, model.files.model, scheme) if plan.fits else [],
    }


def _devices_record(devices: Devices) -> dict[str, Any]:
    device = devices.device
    speeds = {"bandwidth": device.bandwidth, "flops": device.floats, "int8_ops": device.int8}
    return {"count": devices.count, "name": device.name, "memory": device.memory, **speeds}


def _remedy_record(remedy: Remedy) -> dict[str, Any]:
    return {"change": remedy.flags, "longest_context": remedy.longest, "fits_as_asked": remedy.whole}


def _layout_record(plan: LayoutPlan) -> dict[str, Any]:
    return {
        "layout": flags_of(plan.layout),
        "fits": plan.fits,
        "max_model_len": plan.context,
        "longest_context": plan.longest,
        "num_blocks": plan.num_blocks,
        "tile_pages": plan.memory.tile_pages,
        "weight_bytes": plan.weight_bytes,
        "request": {**asdict(plan.shape), "tokens": plan.request_tokens},
        "requests_held": plan.held * plan.layout.data,
        "requests_at_once": plan.at_once * plan.layout.data,
        "most_pictures": plan.pictures,
        "first_token_seconds": plan.first_token,
        "decode_step_seconds": plan.decode(1),
        "full_decode_step_seconds": plan.decode(plan.at_once) if plan.at_once else None,
        "tokens_a_second": plan.tokens_a_second,
    }


def _rank_record(plan: LayoutPlan, rank: RankPlan) -> dict[str, Any]:
    taken = plan.taken_by(rank)
    return {
        "rank": rank.rank,
        "weights": {part: rank.parts[part].bytes for part in PARTS},
        "draft_weights": rank.draft_bytes,
        "weight_bytes": rank.facts.weight_bytes,
        "activation_bytes": taken.activations,
        "graph_bytes": taken.graphs,
        "tile_bytes": taken.tiles,
        "kv_bytes_per_token": rank.facts.kv_bytes_per_token,
        "kv_bytes": taken.kv,
        "left_bytes": taken.left,
        "allowance_bytes": plan.memory.allowance.bytes,
    }
