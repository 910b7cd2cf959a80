"""Environment variables that are read here, and those of vLLM and of deployment guides: what becomes of each.

docs/compatibility.md is written from this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tilewise.errors import InvalidConfig, did_you_mean
from tilewise.foreign.variables import OF_THE_SYSTEM, WITHOUT_EFFECT

Fate = Literal["honoured", "own", "other device", "told"]
"""honoured: it does what it does in vLLM; own: vLLM has none of this name; other device: it is for other programs or
devices, and nothing is said; told: it has no effect, and one line of the log says why."""


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    fate: Fate
    says: str


VARIABLES: tuple[Variable, ...] = (
    Variable("VLLM_API_KEY", "honoured", "key of requests, as --api-key"),
    Variable("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "honoured", "seconds that an idle connection is kept"),
    Variable("VLLM_LOGGING_LEVEL", "honoured", "least level of log lines, such as DEBUG"),
    Variable("VLLM_LOG_STATS_INTERVAL", "honoured", "seconds between lines about throughput and load"),
    Variable("VLLM_USE_MODELSCOPE", "honoured", "ids are those of ModelScope"),
    Variable("VLLM_CPU_KVCACHE_SPACE", "honoured", "memory for the KV cache, in GiB"),
    Variable("VLLM_MEDIA_LOADING_THREAD_COUNT", "honoured", "threads that fetch and cut pictures"),
    Variable("VLLM_MAX_N_SEQUENCES", "honoured", "most answers to a prompt (`n`); absent = max_num_seqs"),
    Variable("VLLM_ENABLE_RESPONSES_API_STORE", "honoured", "1 = /v1/responses are kept, in bounded memory"),
    Variable("TILEWISE_MAX_STORED_RESPONSES", "own", "most responses that are kept (1000); the oldest go"),
    Variable("TILEWISE_MAX_STORED_RESPONSES_MB", "own", "most MiB of the conversations of kept responses (256)"),
    Variable("TILEWISE_STORED_RESPONSES_SECONDS", "own", "seconds that a response is kept (3600)"),
    Variable("VLLM_SERVER_DEV_MODE", "honoured", "1 = routes for developers: /reset_prefix_cache, /server_info ..."),
    Variable("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "honoured", "most MiB of a picture's or a video's file"),
    Variable("VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB", "honoured", "most MiB of all files of a request"),
    Variable("VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES", "honoured", "most bytes of pixels of all pictures of a request"),
    Variable("VLLM_IMAGE_FETCH_TIMEOUT", "honoured", "seconds to fetch a picture, redirects and retries included"),
    Variable("VLLM_VIDEO_FETCH_TIMEOUT", "honoured", "seconds to fetch a video, redirects and retries included"),
    Variable("VLLM_MEDIA_FETCH_MAX_RETRIES", "honoured", "times that a fetch is tried again"),
    Variable("VLLM_MAX_IMAGE_PIXELS", "honoured", "most pixels of a picture, as --max-image-pixels"),
    Variable("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "honoured", "0 = media are not fetched from where an address redirects"),
    Variable("VLLM_MAX_VIDEO_DECODE_FRAMES", "honoured", "most frames of a video's file"),
    Variable("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "honoured", "max_model_len may exceed the length of the training"),
    Variable("VLLM_BATCH_INVARIANT", "honoured", "answers do not depend on the batch, as --batch-invariant"),
    Variable("OMP_NUM_THREADS", "honoured", "threads that compute"),
    Variable("RAY_ADDRESS", "honoured", "the Ray cluster that is joined (default: this machine's, or a new one)"),
    Variable("TILEWISE_RAY_WAIT", "own", "seconds that ranks wait for room in a Ray cluster"),
    Variable("GLOO_SOCKET_IFNAME", "honoured", "network interface by which ranks of several machines meet"),
    Variable(
        "TILEWISE_CPU_KERNELS",
        "own",
        "0 leaves all ops of the CPU to torch; avx2 and avx512 keep kernels to those instructions",
    ),
    Variable("TILEWISE_CUDA_KERNELS", "own", "0 leaves all ops of a GPU to torch"),
    Variable("CXX", "own", "C++ compiler that builds the kernels of the CPU (default: g++)"),
    Variable(
        "XDG_CACHE_HOME",
        "own",
        "where they are kept (tilewise/kernels), and what GGUF files become (tilewise/gguf; default: ~/.cache)",
    ),
    Variable("OMP_PROC_BIND", "honoured", "whether threads stay on their cores"),
    Variable("OMP_WAIT_POLICY", "honoured", "how OpenMP's threads wait; unless said, they soon sleep"),
    Variable("GOMP_SPINCOUNT", "honoured", "the same in numbers, for GNU's OpenMP"),
    Variable("HTTP_PROXY", "honoured", "proxy for http, of media and downloads; http_proxy wins"),
    Variable("http_proxy", "honoured", "the same"),
    Variable("HTTPS_PROXY", "honoured", "proxy for https; https_proxy wins"),
    Variable("https_proxy", "honoured", "the same"),
    Variable("ALL_PROXY", "honoured", "proxy for both where they have none of their own; all_proxy wins"),
    Variable("all_proxy", "honoured", "the same"),
    Variable("NO_PROXY", "honoured", "hosts, domains and networks that are reached directly; no_proxy wins"),
    Variable("no_proxy", "honoured", "the same"),
    Variable("HF_ENDPOINT", "honoured", "address of the Hugging Face hub, or of a mirror"),
    Variable("HF_HUB_OFFLINE", "honoured", "1 = no hub is asked, only its cache"),
    Variable("TRANSFORMERS_OFFLINE", "honoured", "the same as HF_HUB_OFFLINE"),
    Variable("MODELSCOPE_ENDPOINT", "honoured", "address of ModelScope"),
    Variable("MODELSCOPE_CACHE", "honoured", "cache folder of ModelScope's downloads"),
    Variable("MODELSCOPE_API_TOKEN", "honoured", "token for private models of ModelScope"),
    Variable("OTEL_SERVICE_NAME", "honoured", "name of the server in traces; OpenTelemetry's own variables hold, too"),
    Variable("TILEWISE_MAX_CHOSEN_FRAMES", "own", "most frames that are taken of a video"),
    Variable("TILEWISE_VIDEO_DECODE_TIMEOUT", "own", "seconds to decode a video"),
    Variable(
        "TILEWISE_MAX_MEDIA_HANDLES_MB", "own", "MiB of files that are kept under the `uuid` of their parts; 0 = none"
    ),
    Variable("TILEWISE_HOME", "own", "folder of records of services, their logs and the history of `tilewise chat`"),
    Variable("XDG_STATE_HOME", "own", "where that folder is, unless TILEWISE_HOME says"),
    Variable("OPENAI_API_KEY", "own", "key that `tilewise bench serve` sends (else VLLM_API_KEY)"),
    Variable("NO_COLOR", "own", "no colours in `tilewise inspect`"),
    Variable("TERM", "own", "dumb = no styles in `tilewise chat`"),
    Variable("VLLM_USE_V1", "told", "there is one engine, and nothing to choose"),
    Variable(
        "VLLM_ASCEND_ENABLE_FLASHCOMM1", "honoured", "1 = ranks share out the rows of long steps between products"
    ),
    Variable(
        "VLLM_ASCEND_ENABLE_FUSED_MC2", "told", "sums over ranks are torch.distributed's, not fused with products"
    ),
    Variable("VLLM_ASCEND_ENABLE_NZ", "told", "weights keep their layout, the NZ layout is for NPUs"),
    Variable("VLLM_TORCH_PROFILER_WITH_STACK", "told", "there is no profiler to be started by a request"),
    Variable("VLLM_TORCH_PROFILER_DIR", "told", "there is no profiler to be started by a request"),
    Variable("PYTORCH_NPU_ALLOC_CONF", "other device", "memory of NPUs"),
    Variable("PYTORCH_CUDA_ALLOC_CONF", "other device", "memory of GPUs"),
    Variable("TASK_QUEUE_ENABLE", "other device", "launches of NPUs"),
    Variable("HCCL_OP_EXPANSION_MODE", "other device", "sums across NPUs"),
    Variable("HCCL_BUFFSIZE", "other device", "sums across NPUs"),
    *(Variable(name, "told", why) for name, why in WITHOUT_EFFECT.items()),
    *(Variable(name, "other device", "other programs'") for name in OF_THE_SYSTEM),
)
OPTIONS = {
    "VLLM_API_KEY": "api_key",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "timeout_keep_alive",
    "VLLM_MAX_IMAGE_PIXELS": "max_image_pixels",
}
"""Variable -> the option that it is another name of; flag and file win over it."""


def explain_variables(environment: Mapping[str, str]) -> list[str]:
    return [f"{entry.name}: {entry.says}." for entry in VARIABLES if entry.fate == "told" and entry.name in environment]


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a line in vLLM's words for each variable VLLM_... that nobody knows; it has no effect."""
    known = {entry.name for entry in VARIABLES}
    return [
        f"Unknown vLLM environment variable detected: {name}.{did_you_mean(name, known)}"
        for name in sorted(environment)
        if name.startswith("VLLM_") and name not in known
    ]


def refuse_unknown(environment: Mapping[str, str]) -> None:
    if unknown := unknown_variables(environment):
        raise InvalidConfig(f"{' '.join(unknown)} Unset it, or leave out --fail-on-environ-validation.")
