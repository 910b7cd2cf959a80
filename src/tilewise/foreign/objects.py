"""Options of vLLM that are objects: their keys are checked and explained one by one, or become options of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tilewise.errors import InvalidConfig, did_you_mean

MANY = 999  # vLLM's limit where none is set
_OTHER_MEDIA = ("audio", "vision_chunk")
"""Kinds of media that prompts of other models hold."""
LIMIT_KEYS = ("count", "num_frames", "width", "height")
_BACKENDS = ("auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer")
_VIDEO_KEYS = ("num_frames", "fps")
MODES = ("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
_OURS = "FULL_DECODE_ONLY"
_GRAPH_KEYS = (
    *("cudagraph_mode", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_num_of_warmups"),
    *("cudagraph_copy_inputs", "cudagraph_specialize_lora", "cudagraph_mm_encoder", "compile_mm_encoder"),
    *("encoder_cudagraph_token_budgets", "encoder_cudagraph_max_vision_items_per_batch"),
    "encoder_cudagraph_max_frames_per_batch",
)
_COMPILER_MODES = ("NONE", "STOCK_TORCH_COMPILE", "DYNAMO_TRACE_ONCE", "VLLM_COMPILE")
_UNDERSTOOD = ("cudagraph_mode", "cudagraph_capture_sizes", "max_cudagraph_capture_size")
_COMPILER_KEYS = (
    *("mode", "level", "backend", "custom_ops", "splitting_ops", "use_inductor", "use_inductor_graph_partition"),
    *("compile_sizes", "compile_ranges_split_points", "inductor_compile_config", "inductor_passes", "pass_config"),
    *("cache_dir", "debug_dump_path", "local_cache_dir", "compile_cache_save_format", "dynamic_shapes_config"),
)


def check_compilation(config: Mapping[str, Any], max_num_seqs: int | None) -> list[str]:
    """Return lines that say what became of the keys. Raises InvalidConfig for one that is unknown or not possible."""
    known = (*_GRAPH_KEYS, *_COMPILER_KEYS)
    for key in config:
        if key not in known:
            raise InvalidConfig(f"compilation_config has no key {key!r}.{did_you_mean(key, known)}")
    _check_compiler(config)
    lines = [*_about_mode(config.get("cudagraph_mode")), *_about_sizes(_sizes(config), max_num_seqs)]
    if others := [key for key in config if key not in _UNDERSTOOD]:
        lines.append(f"compilation_config: {', '.join(others)} without effect: models are not compiled.")
    return lines


def _check_compiler(config: Mapping[str, Any]) -> None:
    """Raise InvalidConfig for a mode of the compiler, or its level, as it was called before, that vLLM would refuse."""
    for key in ("mode", "level"):
        found = config.get(key)
        if found is not None and str(found).upper() not in (*_COMPILER_MODES, *map(str, range(len(_COMPILER_MODES)))):
            raise InvalidConfig(
                f"compilation_config: {key} must be 0 to {len(_COMPILER_MODES) - 1}, or {', '.join(_COMPILER_MODES)}, "
                f"got {found!r:.80}."
            )


def _about_mode(mode: Any) -> Iterator[str]:
    if mode is None:
        return
    if not isinstance(mode, str) or mode.upper() not in MODES:
        hint = did_you_mean(str(mode).upper(), MODES)
        raise InvalidConfig(
            f"compilation_config: cudagraph_mode must be one of {', '.join(MODES)}, got {mode!r}.{hint}"
        )
    if mode.upper() not in ("NONE", _OURS):
        yield (
            f"compilation_config: cudagraph_mode {mode.upper()} became {_OURS}: passes of a token or a few a sequence "
            "are captured where they can be, answers are the same."
        )


def _about_sizes(sizes: Sequence[int], max_num_seqs: int | None) -> Iterator[str]:
    if sizes:
        yield (
            f"compilation_config: cudagraph_capture_sizes became max_graph_size={max(sizes)}: a GPU or an NPU "
            "captures 1, 2, 4, 8, 16 and so on up to that, a CPU each size when it comes first."
        )
    if unused := [size for size in sizes if max_num_seqs is not None and size > max_num_seqs]:
        shown = ", ".join(map(str, unused))
        yield f"compilation_config: sizes {shown} would nowhere be used: max_num_seqs is {max_num_seqs}."


def asks_for_eager(config: Mapping[str, Any], level: Any) -> bool:
    """Return whether no graphs are wanted, as `--enforce-eager` says.

    That is `cudagraph_mode` NONE, no size to capture, or level 0 and no mode.
    """
    mode = config.get("cudagraph_mode")
    if config.get("cudagraph_capture_sizes") == [] or config.get("max_cudagraph_capture_size") == 0:
        return True
    return str(level) == "0" if mode is None else str(mode).upper() == "NONE"


def largest_graph(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of graphs as the option max_graph_size; empty where there are none."""
    largest = max(_sizes(config), default=config.get("max_cudagraph_capture_size"))
    return {"max_graph_size": largest} if largest else {}


def _sizes(config: Mapping[str, Any]) -> list[int]:
    sizes = config.get("cudagraph_capture_sizes")
    if sizes is None:
        return []
    if not isinstance(sizes, list) or any(type(size) is not int or size < 1 for size in sizes):
        raise InvalidConfig(f"compilation_config: cudagraph_capture_sizes must be numbers from 1 on, got {sizes!r}.")
    largest = config.get("max_cudagraph_capture_size")
    if largest is not None and sizes and largest != max(sizes):
        raise InvalidConfig(
            f"compilation_config: max_cudagraph_capture_size={largest!r} is not the largest of "
            f"cudagraph_capture_sizes, {max(sizes)}: leave one of them out."
        )
    return sorted(set(sizes))


def compilation_of(value: Any) -> dict[str, Any]:
    """Return compilation_config as a dict. A number, which vLLM takes too, is the mode alone. Raises InvalidConfig."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"mode": value}
    if value is not None and not isinstance(value, Mapping):
        raise InvalidConfig(f"compilation_config must be a dict, or the number of a mode, got {value!r:.80}.")
    return dict(value or {})


def check_limits(limits: Mapping[str, Any]) -> None:
    """Raise ValueError for a key that limit_mm_per_prompt does not have."""
    for kind, limit in limits.items():
        for key in limit if isinstance(limit, Mapping) else ():
            if key not in LIMIT_KEYS:
                raise ValueError(f"{kind} knows {', '.join(LIMIT_KEYS)}, got {key!r}.{did_you_mean(key, LIMIT_KEYS)}")


def counts_of(limits: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the count of each kind, and lines about sizes beside them. Raises InvalidConfig for an unknown key.

    `limit_mm_per_prompt` may be {"image": 4}, {"image": {"count": 4, "width": 448}}, and mixed.
    """
    if not isinstance(limits, Mapping):
        raise InvalidConfig(f"limit_mm_per_prompt must be an object of counts by kind, got {limits!r:.80}.")
    try:
        check_limits(limits)
    except ValueError as error:
        raise InvalidConfig(f"limit_mm_per_prompt: {error}") from None
    counts, lines = {}, []
    for kind, limit in limits.items():
        if kind in _OTHER_MEDIA:
            lines += [f"limit_mm_per_prompt: {kind} is not taken, so its limit is no matter."] if limit else []
            continue
        counts[kind] = limit.get("count", MANY) if isinstance(limit, Mapping) else limit
        sizes = [key for key in limit if key != "count"] if isinstance(limit, Mapping) else []
        if sizes:
            named = ", ".join(sizes)
            lines.append(
                f"limit_mm_per_prompt: {named} of {kind} are for engines that profile; here memory is counted."
            )
    return counts, lines


def options_of_media_io(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the options that `media_io_kwargs` stands for, and lines about them.

    Raises InvalidConfig for a key that is none here.
    """
    for kind, options in kwargs.items():
        if not isinstance(options, Mapping | None):
            raise InvalidConfig(f"media_io_kwargs: {kind} must be an object, got {options!r:.80}.")
        keys = _VIDEO_KEYS if kind == "video" else ()
        for key in options or ():
            if key not in keys:
                raise InvalidConfig(
                    f"media_io_kwargs: {kind} has no {key!r} here; num_frames and fps of video are all that can be set."
                    f"{did_you_mean(key, keys)}"
                )
    video = dict(kwargs.get("video") or {})
    return video, [f"media_io_kwargs: became --{key.replace('_', '-')} {value}." for key, value in video.items()]


_STRUCTURED = ("disable_additional_properties", "disable_any_whitespace")


def options_of_structured(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that `structured_outputs_config` stands for. A known backend is taken, and changes nothing.

    Raises InvalidConfig.
    """
    backend = config.get("backend", "auto")
    if backend not in _BACKENDS:
        hint = did_you_mean(str(backend), _BACKENDS)
        raise InvalidConfig(
            f"structured_outputs_config: backend must be one of {', '.join(_BACKENDS)}, got {backend!r}.{hint}"
        )
    for key, value in config.items():
        if key not in ("backend", *_STRUCTURED) and value not in (None, False, ""):
            raise InvalidConfig(
                f"structured_outputs_config: {key} cannot be set for all requests: put it into structured_outputs of a "
                f"request.{did_you_mean(key, ('backend',))}"
            )
    return {key: value for key, value in config.items() if key in _STRUCTURED and value is not None}


Put = Callable[[dict[str, Any], Any], None]
"""A function that puts the value of an option into the options that there are."""


def key_of(option: str, key: str) -> Put:
    """Return a function that puts a value into a key of an object, unless the key is there already."""

    def put(values: dict[str, Any], value: Any) -> None:
        values[option] = {key: value, **(values.get(option) or {})}

    return put


def capture_sizes(values: dict[str, Any], sizes: Any) -> None:
    if sizes:
        whole = [int(size) if str(size).isdecimal() else size for size in sizes]
        key_of("compilation_config", "cudagraph_capture_sizes")(values, whole)


def no_media_cache(values: dict[str, Any], off: Any) -> None:
    if off:
        values["mm_processor_cache_gb"] = 0


def no_request_log(values: dict[str, Any], off: Any) -> None:
    if off:
        values.setdefault("enable_log_requests", False)
