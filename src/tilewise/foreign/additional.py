"""Keys of additional_config, by which vLLM-Ascend takes options of its own.

Source: vllm-project/vllm-ascend `vllm_ascend/ascend_config.py`, and `envs.py` of the variables that it had before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tilewise.errors import InvalidConfig, did_you_mean

FLASHCOMM_TOKENS = 1000
"""Tokens of a step from which on FlashComm shares them out."""
_NZ = "an NPU keeps matrices of int8 in the NZ layout, as with 1; VLLM_ASCEND_ENABLE_NZ=0 keeps none, 2 all"
_GRAPHS = "graphs are those of compilation_config"
ADDITIONAL = {
    "enable_cpu_binding": "cpu_binding, unless that is given: ranks keep to cores of their own",
    "enable_flashcomm1": f"sequence_parallel_tokens={FLASHCOMM_TOKENS}, unless that is given: ranks share out rows",
    "enable_weight_nz_layout": _NZ,
    "weight_nz_mode": _NZ,
    "enable_fused_mc2": "sums over ranks are torch.distributed's, not fused with products",
    "mega_moe_max_tokens": "no token is ever dropped",
    "layer_sharding": "ranks share a layer out by its heads and columns",
    "ascend_scheduler_config": "there is one scheduler, which cuts prompts and mixes them with decoding",
    "scheduler_config": "there is one scheduler, which cuts prompts and mixes them with decoding",
    "torchair_graph_config": _GRAPHS,
    "xlite_graph_config": _GRAPHS,
    "ascend_compilation_config": _GRAPHS,
    "ascend_fusion_config": "ops are fused where torch_npu has one for them",
    "refresh": "what is said stands in the log",
}
"""Keys -> what becomes of each."""
_VALUES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("enable_cpu_binding", "enable_flashcomm1", "enable_weight_nz_layout"), (True, False)),
    "weight_nz_mode": (0, 1, 2),
}


def checked_additional(value: Any) -> dict[str, Any]:
    """Return additional_config as a dict. Raises InvalidConfig for another kind, or a value that a key cannot have."""
    if value is not None and not isinstance(value, Mapping):
        like = {"enable_cpu_binding": True}
        raise InvalidConfig(f"additional_config must be an object such as {like}, got {value!r:.80}.")
    config = {str(key): found for key, found in (value or {}).items()}
    for key, values in _VALUES.items():
        found = config.get(key)
        if found is not None and not any(type(found) is type(item) and found == item for item in values):
            raise InvalidConfig(f"additional_config: {key} must be {' or '.join(map(str, values))}, got {found!r:.80}.")
    return config


def options_of_additional(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ours that keys stand for."""
    options: dict[str, Any] = {}
    if (bound := config.get("enable_cpu_binding")) is not None:
        options["cpu_binding"] = bound
    if (shared := config.get("enable_flashcomm1")) is not None:
        options["sequence_parallel_tokens"] = FLASHCOMM_TOKENS if shared else 0
    return options


def explain_additional(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line about each key that is known."""
    for key in config:
        if key in ADDITIONAL:
            yield f"additional_config: {key}: {ADDITIONAL[key]}."


def unknown_additional(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line about each key that is not."""
    for key in config:
        if key not in ADDITIONAL:
            yield f"additional_config: {key!r} is not known and has no effect.{did_you_mean(key, ADDITIONAL)}"
