"""AutoRound's own description of layers that are packed as those of GPTQ or AWQ.

Source: intel/auto-round 0.16, `auto_round/inference/backend.py` (packing formats; only "auto_gptq" stores zero points
less one) and `inference/convert_model.py` (`extra_config`, settings of single layers, 16 bits for floats).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Method, QuantizationConfig, layouts_where
from tilewise.weights.quantization.awq import AwqLayout
from tilewise.weights.quantization.gptq import BITS, GptqLayout
from tilewise.weights.quantization.stored import Layouts, StoredLayout

_FLOATS = 16
"""Bits of a layer that is not quantised."""
_PACKING = {
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptq": "gptq",
    "auto_round": "gptq_v2",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round:auto_awq": "awq",
    "auto_round:awq": "awq",
}


def layouts(folder: CheckpointFolder) -> Layouts:
    config = QuantizationConfig.of(folder)
    for key in ("act_bits", "rotation_config"):
        if (found := config.get(key)) not in (None, _FLOATS):
            raise config.refused(key, found, "a checkpoint without it")
    usual = _layout(config, {})
    find_usual = layouts_where(folder, usual) if usual else None
    own = {pattern: _layout(config, given) for pattern, given in config.settings_by_pattern("extra_config").items()}
    find_own = {pattern: layouts_where(folder, layout, head=True) for pattern, layout in own.items() if layout}

    def find(module: str) -> StoredLayout | None:
        """Return a module's layout by the first entry that fits: names of layers stand before patterns of names."""
        for pattern in own:
            if pattern == module or re.fullmatch(pattern, module):
                return find_own[pattern](module) if pattern in find_own else None
        return find_usual(module) if find_usual else None

    return find


def _layout(config: QuantizationConfig, own: dict[str, Any]) -> StoredLayout | None:
    """Return the layout of the layers with these settings of their own; None = floats."""
    asked = replace(config, values={**config.values, **own})
    packing = asked.get("packing_format", "auto_round:auto_gptq")
    kept, bits = _PACKING.get(str(packing)), asked.whole("bits")
    if kept is None:
        raise config.refused("packing_format", packing, ", ".join(_PACKING))
    if bits == _FLOATS:
        return None
    if bits not in (BITS if kept != "awq" else (4,)):
        raise config.refused("bits", bits, ", ".join(map(str, BITS)) if kept != "awq" else "4")
    group = asked.group_size()
    return AwqLayout(group, True) if kept == "awq" else GptqLayout(bits, group, less_one=kept == "gptq")


METHOD = Method(("auto-round", "intel/auto-round"), layouts)
