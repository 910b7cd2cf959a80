"""Flags of vLLM that are no options here, and what becomes of each. docs/compatibility.md is written from this.

A name that is an option as well is listed for the values that the option cannot take yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tilewise.cli.flags.flag import Flag
from tilewise.errors import InvalidConfig

Fate = Literal["built in", "other device", "not yet", "never"]
"""built in: it is so anyway; other device: it matters where something else computes; not yet and never are refused."""


@dataclass(frozen=True, slots=True)
class Foreign:
    name: str
    hint: Any
    fate: Fate
    says: str
    """What became of it, for the log, or why it is refused."""
    accepts: tuple[Any, ...] | None = None
    """Values that ask for what is so anyway; None = all."""
    short: str | None = None
    by_key: bool = False
    """An object whose keys are explained one by one."""

    @property
    def flag(self) -> Flag:
        return Flag(self.name, self.hint, "compatibility", f"{self.fate}: {self.says}", short=self.short)

    def refuses(self, value: Any) -> bool:
        return self.accepts is not None and value not in self.accepts

    def line(self, value: Any) -> str:
        return f"{self.flag.dashed} {value}: {self.says}"


def _parallel(name: str, short: str | None = None) -> Foreign:
    return Foreign(name, int, "not yet", "one device computes; several are not there yet, use 1", (1,), short)


def _off(name: str, says: str, fate: Fate = "not yet", short: str | None = None) -> Foreign:
    """A switch that may only be off."""
    return Foreign(name, bool, fate, says, (False,), short)


_ONE_DEVICE = "experts are all on one device"
_NUMA = "threads are bound by OMP_PROC_BIND and OMP_PLACES, or by numactl"

FOREIGN: tuple[Foreign, ...] = (
    _parallel("tensor_parallel_size", "-tp"),
    _parallel("pipeline_parallel_size", "-pp"),
    _parallel("data_parallel_size", "-dp"),
    _parallel("api_server_count"),
    Foreign("enable_prompt_tokens_details", bool, "built in", "usage always has them", (True,)),
    Foreign("enable_server_load_tracking", bool, "built in", "/load always counts running requests", (True,)),
    _off("enable_expert_parallel", f"{_ONE_DEVICE}; spreading them is not there yet", short="-ep"),
    _off("enable_eplb", f"{_ONE_DEVICE}; balancing them is not there yet"),
    Foreign("eplb_config", dict[str, Any], "other device", _ONE_DEVICE),
    Foreign("all2all_backend", str, "other device", _ONE_DEVICE),
    Foreign("expert_placement_strategy", Literal["linear", "round_robin"], "other device", _ONE_DEVICE),
    Foreign("enable_ep_weight_filter", bool, "other device", _ONE_DEVICE),
    Foreign(
        *("quantization", str | None, "not yet"),
        "quantised checkpoints cannot be read yet; take the one in bfloat16, with int8 if it is to be rounded",
        accepts=(None, "int8"),
        short="-q",
    ),
    Foreign(
        *("compilation_config", dict[str, Any], "other device"),
        "cudagraph_mode NONE is --enforce-eager; of the rest every key is checked, and one line says what became of it",
        short="-cc",
        by_key=True,
    ),
    Foreign(
        *("optimization_level", Literal["0", "1", "2", "3"], "other device"),
        "0 is --enforce-eager; there is nothing to compile, and the others are the same",
        short="-O",
    ),
    Foreign(
        *("performance_mode", Literal["balanced", "interactivity", "throughput"], "other device"),
        "it chooses sizes of graphs, which are captured as they come",
    ),
    Foreign(
        *("additional_config", dict[str, Any], "other device"),
        "options of vLLM-Ascend; one line a key says what became of it, and unknown keys are named",
        by_key=True,
    ),
    Foreign(
        *("enable_chunked_prefill", bool, "built in"),
        "prompts are always computed in chunks; max_num_batched_tokens is the size of a step",
        accepts=(True,),
    ),
    _off("disable_chunked_mm_input", "a chunk may end between the tiles of a picture"),
    Foreign("long_prefill_token_threshold", int, "not yet", "a long prompt may take a whole step", accepts=(0,)),
    Foreign("max_num_partial_prefills", int, "not yet", "prompts are computed one behind the other", accepts=(1,)),
    Foreign("max_long_partial_prefills", int, "not yet", "prompts are computed one behind the other", accepts=(1,)),
    Foreign(
        *("prefix_caching_hash_algo", Literal["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"], "built in"),
        "blocks are known by BLAKE2b over tokens, tiles and salt, which is as safe as sha256",
    ),
    Foreign(
        *("mm_encoder_tp_mode", Literal["weights", "data"], "built in"),
        "one device encodes all tiles, so both are the same",
    ),
    Foreign("mm_encoder_attn_backend", str, "other device", "attention of the tower is the platform's"),
    Foreign(
        *("mm_processor_cache_type", Literal["lru", "shm"], "built in"),
        "pictures that were cut are kept once, for the whole server",
    ),
    Foreign("mm_shm_cache_max_object_size_mb", int, "built in", "pictures are not kept in shared memory"),
    Foreign("mm_tensor_ipc", Literal["direct_rpc", "torch_shm"], "built in", "tiles travel as bytes, not as tensors"),
    Foreign("skip_mm_profiling", bool, "built in", "memory for pictures is counted, not profiled"),
    Foreign(
        *("media_io_kwargs", dict[str, Any], "built in"),
        "num_frames and fps of video are the options of that name; nothing else can be set",
        by_key=True,
    ),
    _off("enable_mm_embeds", "embeddings are not taken in place of pictures"),
    _off("enable_prompt_embeds", "embeddings are not taken in place of prompts"),
    _off("language_model_only", "a model is loaded whole"),
    Foreign("video_pruning_rate", float, "not yet", "no token of a video is left out, use 0", accepts=(0.0,)),
    Foreign(
        *("chat_template_content_format", Literal["auto", "string", "openai"], "built in"),
        "the built-in templates take messages in both forms",
    ),
    Foreign(
        *("chat_template", str, "never"),
        "a model is asked as it was trained to be; `tilewise inspect MODEL` shows the prompt and compares a Jinja file",
        accepts=(),
    ),
    _off("trust_request_chat_template", "templates of callers are not run", "never"),
    Foreign("response_role", str, "never", "answers are the assistant's", accepts=("assistant",)),
    Foreign(
        *("structured_outputs_config", dict[str, Any], "built in"),
        "llguidance sees to structured answers, whatever `backend` names; other keys are options of a request",
    ),
    Foreign("middleware", tuple[str, ...], "never", "no code of others is put into the server; use a proxy", ()),
    _off("enable_ssl_refresh", "certificates are read once, at the start"),
    _off("enable_tokenizer_info_endpoint", "there is no /tokenizer_info; /tokenize is there"),
    _off("enable_offline_docs", "/docs loads its page from the network"),
    Foreign("log_config_file", str, "not yet", "the form of log lines is vLLM's and cannot be changed", accepts=()),
    _off("headless", "a server without HTTP is for several machines"),
    _off("grpc", "HTTP is what is spoken"),
    Foreign("profiler_config", dict[str, Any], "not yet", "there is no profiler to be started by a request", ()),
    _off("kv_cache_metrics", "blocks' lifetimes are not measured"),
    _off("enable_mfu_metrics", "operations are not counted"),
    Foreign("numa_bind", bool, "other device", _NUMA),
    Foreign("numa_bind_nodes", tuple[str, ...], "other device", _NUMA),
    Foreign("numa_bind_cpus", tuple[str, ...], "other device", _NUMA),
)

REMARKS = {"trust_remote_code": "code of a checkpoint is never run, nor is it needed"}
"""Options whose value changes nothing."""


def check_foreign(values: dict[str, Any]) -> list[str]:
    """A line for each flag that changes nothing. Raises InvalidConfig that names all that cannot be."""
    given = [(entry, values[entry.name]) for entry in FOREIGN if entry.name in values]
    refused = [
        f"{entry.name}={value!r} is not possible: {entry.says}" for entry, value in given if entry.refuses(value)
    ]
    if refused:
        raise InvalidConfig(". ".join(refused) + ".")
    silent = ("not yet", "never")
    lines = [entry.line(value) for entry, value in given if entry.fate not in silent and not entry.by_key]
    return lines + [f"--{name.replace('_', '-')}: {text}" for name, text in REMARKS.items() if values.get(name)]
