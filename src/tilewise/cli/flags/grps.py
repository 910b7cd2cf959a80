"""The files of grps, server.yml and inference.yml, as far as there is an option for what they say.

Keys that are not grps's are flags by their names, so one file may hold both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewise.cli.flags.flag import Flag
from tilewise.cli.flags.parse import read_yaml, values_of
from tilewise.errors import InvalidConfig, did_you_mean

DEFAULTS: dict[str, Any] = {"port": 9997}
"""Options of a service that is started as grps starts one, from an archive (.mar)."""
NAME = "my_grps"

_SAID = {
    "interface.framework": "HTTP is what is spoken",
    "interface.customized_predict_http": "the path is /v1/chat/completions, and `stream` in a body asks for a stream",
    "max_connections": "connections are not counted; max_num_queued_reqs limits what may wait",
    "gpu": "memory is the options' of the group memory",
    "log": "the log is what `tilewise logs` shows",
}
_STYLES = {
    "internvl3": "InternVL3",
    "internvl2.5": "InternVL2_5",
    "internvl2-internlm2": "InternVL2",
    "internvl2-qwen2": "InternVL2",
    "internvl2-phi3": "InternVL2",
}
"""grps's `llm_style` -> the name of the model that requests give."""
_MODEL_KEYS = (
    *("name", "version", "device", "inferer_type", "inferer_name", "inferer_path", "inferer_args"),
    *("converter_type", "converter_name", "converter_path", "converter_args"),
)
_ARGUMENTS = (
    *("llm_style", "tokenizer_type", "tokenizer_path", "tokenizer_parallelism", "end_token_id", "pad_token_id"),
    *("skip_special_tokens", "force_tokens_dict", "prefix_tokens_id", "suffix_tokens_id", "img_token"),
    *("img_begin_token_id", "vit_type", "vit_path", "vit_worker_tp", "vit_trt_args", "sampling", "gpt_model_type"),
    *("gpt_model_path", "encoder_model_path", "stop_words", "bad_words", "max_tokens_in_paged_kv_cache"),
    *("max_attention_window_size", "sink_token_length", "batch_scheduler_policy", "kv_cache_free_gpu_mem_fraction"),
    *("kv_cache_host_memory_bytes", "kv_cache_onboard_blocks", "exclude_input_in_output"),
    *("cancellation_check_period_ms", "stats_check_period_ms", "iter_stats_max_iterations"),
    *("request_stats_max_iterations", "enable_kv_cache_reuse", "normalize_log_probs", "enable_chunked_context"),
    *("gpu_device_ids", "lora_cache_max_adapter_size", "lora_cache_optimal_adapter_size"),
    *("lora_cache_gpu_memory_fraction", "lora_cache_host_memory_bytes", "decoding_mode", "executor_worker_path"),
    *("medusa_choices", "gpu_weights_percent"),
)


@dataclass
class GrpsFlags:
    """The flags that a file stands for, and lines that say what became of its other keys."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def read_server_yml(path: str, flags: Sequence[Flag]) -> GrpsFlags:
    """Read one of grps's files, or a file of flags. Raises InvalidConfig for keys that neither of them has."""
    found, entries = GrpsFlags(), read_yaml(path)
    rest = {key: value for key, value in entries.items() if key not in _PARTS}
    for key, read in _PARTS.items():
        if key in entries and read is not None:
            read(found, entries[key], path)
        elif key in entries and key in _SAID:
            found.lines.append(f"{key}: {_SAID[key]}.")
    # grps's keys stand among the flags as well, so that one with a slip in it is recognised.
    grps_names = [Flag(name, str, "", "") for name in ("interface", "max_connections", "models", "dag")]
    found.values |= values_of(rest, [*flags, *grps_names], path)
    return found


def _interface(found: GrpsFlags, entry: Any, where: str) -> None:
    known = ("host", "port", "framework", "customized_predict_http")
    for key, value in _mapping(entry, f"{where}: interface").items():
        _known(key, known, f"{where}: interface")
        if key == "port":
            found.values["port"] = _first_port(value, where)
        elif key == "host":
            found.values["host"] = str(value)
        else:
            found.lines.append(f"interface.{key}: {_SAID[f'interface.{key}']}.")


def _first_port(value: Any, where: str) -> int:
    """Return the port of HTTP: grps writes it and that of RPC as one text, with a comma."""
    first = str(value).partition(",")[0].strip()
    if not first.isdecimal():
        raise InvalidConfig(f"{where}: interface.port must be a number, got {value!r}.")
    return int(first)


def _max_concurrency(found: GrpsFlags, value: Any, where: str) -> None:
    if type(value) is not int:
        raise InvalidConfig(f"{where}: max_concurrency must be a number, got {value!r}.")
    found.values["max_num_seqs"] = value
    found.lines.append(f"max_concurrency: became --max-num-seqs {value}; further requests wait.")


def _models(found: GrpsFlags, entry: Any, where: str) -> None:
    if not isinstance(entry, list) or len(entry) != 1:
        raise InvalidConfig(f"{where}: models must be a list of one model, got {entry!r:.80}.")
    model = _mapping(entry[0], f"{where}: models[0]")
    for key in model:
        _known(key, _MODEL_KEYS, f"{where}: models[0]")
    arguments = _mapping(model.get("inferer_args") or {}, f"{where}: inferer_args")
    for key in arguments:
        _known(key, _ARGUMENTS, f"{where}: inferer_args")
    _arguments(found, arguments)
    style = _STYLES.get(str(arguments.get("llm_style")))
    names = (style, str(model["name"]) if "name" in model else None)
    found.values["served_model_name"] = tuple(dict.fromkeys(name for name in names if name))


def _arguments(found: GrpsFlags, arguments: Mapping[str, Any]) -> None:
    if "tokenizer_path" in arguments:
        found.values["model"] = str(Path(str(arguments["tokenizer_path"])))
    if "enable_kv_cache_reuse" in arguments:
        found.values["enable_prefix_caching"] = bool(arguments["enable_kv_cache_reuse"])
    if arguments.get("sampling"):
        found.values["override_generation_config"] = dict(arguments["sampling"])
    used = ("tokenizer_path", "enable_kv_cache_reuse", "sampling", "llm_style")
    if rest := [key for key in arguments if key not in used]:
        found.lines.append(f"inferer_args: {', '.join(rest)}: the checkpoint says it, or there is no such thing here.")


_PARTS: dict[str, Callable[[GrpsFlags, Any, str], None] | None] = {
    "interface": _interface,
    "max_concurrency": _max_concurrency,
    **dict.fromkeys(("max_connections", "gpu", "log")),
    "models": _models,
    "dag": None,  # the order of models, of which there is one
}
"""Keys at the top of grps's files, each with what reads it; None = its value does nothing here."""


def _mapping(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise InvalidConfig(f"{where} must be a mapping, got {entry!r:.80}.")
    return {str(key): value for key, value in entry.items()}


def _known(key: str, known: tuple[str, ...], where: str) -> None:
    if key not in known:
        raise InvalidConfig(f"{where} has no key {key!r}.{did_you_mean(key, known)}")
