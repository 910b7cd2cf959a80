"""compressed-tensors, which llm-compressor writes: each group of layers has a scheme, by class, name or pattern.

Source: vllm-project/compressed-tensors 0.20.1, `quantization/quant_config.py`, `quant_scheme.py` and `quant_args.py`
for keys, `utils/match.py` for names, `compressors/format.py` for which format keeps which scheme.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from functools import cache
from typing import Any

from tilewise.errors import InvalidCheckpoint, did_you_mean
from tilewise.ignored import LOG
from tilewise.weights.files import known_names
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.quantization import Method, Pattern, QuantizationConfig, module_class
from tilewise.weights.quantization.compressed_layout import ByteLayout, PackedLayout, RowRounding, WeightScheme
from tilewise.weights.quantization.stored import Layouts, ScaleBlock, StoredLayout

_FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "naive-quantized")
_CHANGING_KEYS = ("sparsity_config", "transform_config", "moe_sparsity_config")
_KEYS = (
    *("quant_method", "config_groups", "format", "ignore", "quantization_status", "version", "run_compressed"),
    *("global_compression_ratio", "kv_cache_scheme", *_CHANGING_KEYS),
)
_SCHEME_KEYS = ("targets", "weights", "input_activations", "output_activations", "format")
_NUMBER_KEYS = (
    *("num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder"),
    *("observer", "observer_kwargs", "scale_dtype", "zp_dtype"),  # how numbers were found, which nothing depends on
)
_GROUP_ORDERS = ("group", "dynamic", True)
_OTHER_ORDERS = ("weight", "static", False, None)


def layouts(folder: CheckpointFolder) -> Layouts:
    config = QuantizationConfig.of(folder)
    _check_keys(config)
    names = known_names(folder.path)
    ignored_names = config.names("ignore")
    ignored = Pattern(ignored_names, f"{config.where}: ignore")
    # As the library orders them: a name before a pattern before a class, and of two groups the later one.
    by_target: dict[str, StoredLayout | None] = {}
    for key in config.section("config_groups").values:
        by_target |= _group(config, key, names)
    patterns = [
        (Pattern([target], config.where), by_target[target])
        for target in sorted(by_target, key=lambda target: ("re:" in target, target))
    ]

    @cache
    def layout(module: str) -> StoredLayout | None:
        kind = module_class(module)
        if kind in ignored_names or ignored.matches(module):
            return None
        return next((found for pattern, found in patterns if pattern.matches(module)), by_target.get(kind))

    return layout


def _check_keys(config: QuantizationConfig) -> None:
    """Raise InvalidCheckpoint for keys that would change answers, and log those that have no effect."""
    for key in _CHANGING_KEYS:
        found = config.get(key)
        if found and not (isinstance(found, dict) and found.get("format") == "dense"):
            raise InvalidCheckpoint(
                f"{config.where}: {key} is {found!r:.80}, supported is none: it changes the weights."
            )
    without = {key: "it is not known" for key in config.values if key not in _KEYS and config.get(key)}
    if config.get("kv_cache_scheme"):
        without["kv_cache_scheme"] = "--kv-cache-dtype says how keys and values are kept"
    LOG.take({f"{config.where}: {key}": why for key, why in without.items()}, "checkpoint")


def _group(config: QuantizationConfig, key: str, names: Set[str]) -> dict[str, StoredLayout | None]:
    """Return the targets of a group with their layout, None where their scheme leaves them in floats."""
    section = config.section("config_groups").section(key)
    _only_known(section, _SCHEME_KEYS)
    targets = section.names("targets")
    if section.get("output_activations"):
        raise InvalidCheckpoint(
            f"{section.where}: output_activations are given, supported are none: results stay floats."
        )
    rows = section.section("input_activations") if section.get("input_activations") else None
    if not section.get("weights"):
        if rows is not None:
            raise InvalidCheckpoint(f"{section.where}: input_activations are given without weights, expected both.")
        return dict.fromkeys(targets)
    form = _one_of(section if section.get("format") else config, "format", _FORMATS)
    if section.get("format") and str(config.get("format", form)).lower() not in (form, "mixed-precision"):
        why = f"it is {config.get('format')!r:.40}, and {key} is {form!r}, which counts"
        LOG.take({f"{config.where}: format": why}, "checkpoint")
    numbers = _numbers(section.section("weights"), form)
    rounding = RowRounding.NONE if rows is None else _rounding(rows, numbers)
    static = rows is not None and not rows.get("dynamic", False)
    kind = PackedLayout if form == "pack-quantized" else ByteLayout
    return dict.fromkeys(targets, kind(numbers, rounding, names, static))


def _numbers(section: QuantizationConfig, form: str) -> WeightScheme:
    _only_known(section, _NUMBER_KEYS)
    floating = _one_of(section, "type", ("int", "float"), "int") == "float"
    if form != "naive-quantized" and floating != (form == "float-quantized"):
        raise InvalidCheckpoint(f"{section.where}: type is {section.get('type')!r}, and format {form!r} has the other.")
    bits = _one_of(section, "num_bits", (8,) if floating else range(1, 9), 8)
    _one_of(section, "dynamic", (False,), False)
    symmetric = _one_of(section, "symmetric", (True,) if floating else (True, False), True)
    order = _one_of(section, "actorder", (*_OTHER_ORDERS, *_GROUP_ORDERS))
    return WeightScheme(bits, floating, _block(section), symmetric, order in _GROUP_ORDERS)


def _block(section: QuantizationConfig) -> ScaleBlock:
    size = section.get("group_size")
    usual = "tensor" if size is None else "channel" if size == -1 else "group"
    match _one_of(section, "strategy", ("tensor", "channel", "group", "block"), usual):
        case "tensor":
            return ScaleBlock(None, None)
        case "channel":
            return ScaleBlock(1, None)
        case "group":
            return ScaleBlock(1, section.whole("group_size"))
    found = section.get("block_structure")
    sizes = found.split("x") if isinstance(found, str) else found
    try:
        outputs, inputs = map(int, sizes)
    except (TypeError, ValueError, OverflowError):
        outputs = inputs = 0
    if outputs < 1 or inputs < 1:
        raise InvalidCheckpoint(
            f"{section.where}: block_structure is {found!r:.80}, expected two whole numbers above 0."
        )
    return ScaleBlock(outputs, inputs)


def _rounding(rows: QuantizationConfig, weights: WeightScheme) -> RowRounding:
    """Return how rows are rounded if that gives exact sums. Otherwise they stay floats, which is never less exact."""
    _only_known(rows, _NUMBER_KEYS)
    kind = _one_of(rows, "type", ("int", "float"), "int")
    bits = _one_of(rows, "num_bits", range(1, 17), 8)
    dynamic = _one_of(rows, "dynamic", (True, False), False)
    strategy = _one_of(rows, "strategy", ("token", "tensor", "group"), "tensor")
    symmetric = _one_of(rows, "symmetric", (True, False), True)
    if kind == "int" and bits == 8 and weights.symmetric and weights.block.inputs is None and not weights.floating:
        if dynamic and strategy == "token" and symmetric:
            return RowRounding.BY_ROW
        if not dynamic and strategy == "tensor":
            return RowRounding.STATIC
    if not dynamic and strategy != "tensor":
        raise InvalidCheckpoint(f"{rows.where}: strategy is {strategy!r}, supported without dynamic is 'tensor'.")
    LOG.take({rows.where: f"rows stay floats instead of {kind}{bits}, which is never less exact"}, "checkpoint")
    return RowRounding.NONE


def _one_of(section: QuantizationConfig, key: str, supported: Collection[Any], usual: Any = None) -> Any:
    found = section.get(key, usual)
    found = found.lower() if isinstance(found, str) else found
    # 1 == True in Python and is another value in JSON.
    if not any(found == one and isinstance(found, bool) == isinstance(one, bool) for one in supported):
        raise section.refused(key, found, ", ".join(repr(one) for one in supported if one is not None))
    return found


def _only_known(section: QuantizationConfig, known: Collection[str]) -> None:
    """Raise InvalidCheckpoint for keys whose meaning is not known, as the library does."""
    for key, value in section.values.items():
        if key not in known and value is not None:
            raise InvalidCheckpoint(
                f"{section.where}: {key} is not known, known are {', '.join(known)}.{did_you_mean(key, known)}"
            )


METHOD = Method(("compressed-tensors",), layouts)
