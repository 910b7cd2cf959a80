"""A plan as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tilewise.deployment.layouts import LayoutPlan, why
from tilewise.deployment.weights import PARTS
from tilewise.layout import flags_of
from tilewise.plan.devices import Devices

if TYPE_CHECKING:
    from tilewise.cli.plan import PlanLine
    from tilewise.deployment.deployment import Deployment
    from tilewise.deployment.ranks import RankPlan
    from tilewise.deployment.remedies import Remedy


def record(deployment: Deployment, line: PlanLine) -> dict[str, Any]:
    """All numbers: bytes, tokens and seconds."""
    plan, model, devices = deployment.chosen, deployment.planner.model, deployment.wishes.devices
    best, scheme = deployment.recommended, deployment.planner.model.files.scheme
    return {
        "model": deployment.wishes.config.model,
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
