"""What a Flash checkpoint adds: a router that scores tiles, and a projector to a quarter of the rows.

Source of names and shapes: `modeling_internvl_chat.py` of InternVL3.5-Flash (arXiv 2508.18265).
"""

from __future__ import annotations

from tilewise.tools.twin.specs import TinySpec

Shape = tuple[int, ...]


def flash_shapes(spec: TinySpec) -> dict[str, Shape]:
    """Names as the original format has them. All four stages of pooling are stored, though two are in use."""
    width, hidden = spec.vision_hidden, spec.hidden
    shapes: dict[str, Shape] = {
        **_norm("mlp2.0", 16 * width),
        **_linear("mlp2.1", 16 * width, 2 * hidden),
        **_linear("mlp2.4", 2 * hidden, 2 * hidden),
        **_linear("mlp2.7", 2 * hidden, hidden),
        "pooling_before_gating.query_token": (1, width),
        **_norm("gating.gate.0", width),
        **_linear("gating.gate.1", width, 2),
    }
    for number in range(1, 5):
        shapes |= _pooling_stage(number, width) | _gating_block(f"gating.block{number}", width)
    return shapes


def _pooling_stage(number: int, width: int) -> dict[str, Shape]:
    attention = f"pooling_before_gating.attn{number}"
    return {
        f"{attention}.in_proj_weight": (3 * width, width),
        f"{attention}.in_proj_bias": (3 * width,),
        **_linear(f"{attention}.out_proj", width, width),
        **_norm(f"pooling_before_gating.norm{number}", width),
    }


def _gating_block(name: str, width: int) -> dict[str, Shape]:
    return {
        **_linear(f"{name}.0", width, 4 * width),
        **_linear(f"{name}.3", 4 * width, width),
        **_norm(f"{name}.5", width),
    }


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
