"""The environment variables of the guides, and what becomes of each. docs/compatibility.md is written from this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tilewise.errors import InvalidConfig, did_you_mean

Fate = Literal["honoured", "other device", "told"]
"""other device: not ours, nothing is said; told: one line says what became of it."""


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    fate: Fate
    says: str


_FLASHCOMM = "one device computes, so nothing has to be summed across devices"

VARIABLES: tuple[Variable, ...] = (
    Variable("VLLM_API_KEY", "honoured", "key of requests, as --api-key"),
    Variable("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "honoured", "seconds that an idle connection is kept"),
    Variable("VLLM_LOGGING_LEVEL", "honoured", "least level of log lines, such as DEBUG"),
    Variable("VLLM_LOG_STATS_INTERVAL", "honoured", "seconds between lines about throughput and load"),
    Variable("VLLM_USE_MODELSCOPE", "honoured", "ids are those of ModelScope"),
    Variable("VLLM_CPU_KVCACHE_SPACE", "honoured", "memory for the KV cache, in GiB"),
    Variable("VLLM_MEDIA_LOADING_THREAD_COUNT", "honoured", "threads that fetch and cut pictures"),
    Variable("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "honoured", "max_model_len may exceed the length of the training"),
    Variable("VLLM_BATCH_INVARIANT", "honoured", "answers do not depend on the batch, as --batch-invariant"),
    Variable("OMP_NUM_THREADS", "honoured", "threads that compute"),
    Variable("TILEWISE_CPU_KERNELS", "honoured", "0 leaves all ops of the CPU to torch"),
    Variable("OMP_PROC_BIND", "honoured", "whether threads stay on their cores"),
    Variable("VLLM_USE_V1", "told", "there is one engine, and nothing to choose"),
    Variable("VLLM_ASCEND_ENABLE_FLASHCOMM1", "told", _FLASHCOMM),
    Variable("VLLM_ASCEND_ENABLE_FUSED_MC2", "told", "experts are all on one device, so nothing is sent between them"),
    Variable("VLLM_ASCEND_ENABLE_NZ", "told", "weights keep their layout, the NZ layout is for NPUs"),
    Variable("VLLM_TORCH_PROFILER_WITH_STACK", "told", "there is no profiler to be started by a request"),
    Variable("VLLM_TORCH_PROFILER_DIR", "told", "there is no profiler to be started by a request"),
    Variable("PYTORCH_NPU_ALLOC_CONF", "other device", "memory of NPUs"),
    Variable("PYTORCH_CUDA_ALLOC_CONF", "other device", "memory of GPUs"),
    Variable("TASK_QUEUE_ENABLE", "other device", "launches of NPUs"),
    Variable("HCCL_OP_EXPANSION_MODE", "other device", "sums across NPUs"),
    Variable("HCCL_BUFFSIZE", "other device", "sums across NPUs"),
)
OPTIONS = {"VLLM_API_KEY": "api_key", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "timeout_keep_alive"}
"""Those that are options of the server by another name; flag and file win over them."""


def explain_variables(environment: Mapping[str, str]) -> list[str]:
    return [f"{entry.name}: {entry.says}." for entry in VARIABLES if entry.fate == "told" and entry.name in environment]


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """vLLM's words for variables of its own that nobody knows; here they have no effect."""
    known = {entry.name for entry in VARIABLES}
    return [
        f"Unknown vLLM environment variable detected: {name}.{did_you_mean(name, known)}"
        for name in sorted(environment)
        if name.startswith("VLLM_") and name not in known
    ]


def refuse_unknown(environment: Mapping[str, str]) -> None:
    if unknown := unknown_variables(environment):
        raise InvalidConfig(f"{' '.join(unknown)} Unset it, or leave out --fail-on-environ-validation.")
