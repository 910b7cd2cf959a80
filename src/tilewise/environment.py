"""Environment: every variable that is read here, with its type and its default. No other module reads one by name.

docs/compatibility.md has a row for each, and one for each variable of vLLM and of deployment guides that does nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

from tilewise.errors import InvalidConfig, nearest
from tilewise.foreign.variables import OF_THE_SYSTEM, WITHOUT_EFFECT

Fate = Literal["honoured", "own", "other device", "told"]
"""honoured: it does what it does in vLLM; own: vLLM has none of this name; other device: it is for other programs or
devices, and nothing is said; told: it has no effect, and one line of the log says why."""
Value = TypeVar("Value")
MAX_FRAMES = 512
"""Most frames that may be taken of a video."""


class Variable(Generic[Value]):
    """A variable: an attribute of an Environment is its value there, an attribute of the class is the variable."""

    def __init__(
        self, fate: Fate, name: str, says: str, read: Callable[[str], Value], default: Value, option: str | None = None
    ) -> None:
        """`read` raises ValueError, whose text goes on behind the name. `option` is another name of the variable."""
        self.fate, self.name, self.says, self.option = fate, name, says, option
        self._read, self._default = read, default

    @overload
    def __get__(self, environment: None, owner: type[Environment]) -> Variable[Value]: ...
    @overload
    def __get__(self, environment: Environment, owner: type[Environment]) -> Value: ...
    def __get__(self, environment: Environment | None, owner: type[Environment]) -> Variable[Value] | Value:
        return self if environment is None else self.value(environment.variables)

    def value(self, variables: Mapping[str, str]) -> Value:
        """Return what is set, or the default. Raises InvalidConfig for a text that is no such value."""
        text = variables.get(self.name)
        if text is None:
            return self._default
        try:
            return self._read(text)
        except ValueError as error:
            raise InvalidConfig(f"{self.name} {error}, found {text!r:.80}.") from None


def text(name: str, says: str, fate: Fate = "honoured", option: str | None = None) -> Variable[str]:
    """Declare a variable whose default is the empty text, as of one that is set to nothing."""
    return Variable(fate, name, says, str, "", option)


def switch(name: str, says: str, fate: Fate = "honoured") -> Variable[bool]:
    """Declare a variable that only 1 switches on."""
    return Variable(fate, name, says, "1".__eq__, False)


class KernelSwitch(NamedTuple):
    """The kernels of our own that a device may use."""

    text: str = ""
    """The switch as it was set."""
    off: bool = False
    level: str | None = None
    """Instructions to which kernels are kept; None = all that there are."""


def kernels(name: str, says: str, *levels: str) -> Variable[KernelSwitch]:
    """Declare a switch of kernels: 0, 1, or one of the levels of instructions to which it can keep them."""

    def read(text: str) -> KernelSwitch:
        asked = text.strip().lower()
        if asked not in (*_OFF, *_ALL, *levels):
            raise ValueError(f"must be {', '.join(('0 (no kernels)', '1 (all of them)', *levels))}, or left out")
        return KernelSwitch(text.strip(), asked in _OFF, asked if asked in levels else None)

    return Variable("own", name, says, read, KernelSwitch())


_OFF, _ALL = ("0", "false", "off", "no"), ("", "1", "true", "on", "yes")


def count(name: str, says: str, fate: Fate = "honoured") -> Variable[int | None]:
    return Variable(fate, name, says, _number(1, 2**31 - 1), None)


def limit(
    name: str, says: str, fate: Fate = "honoured", lowest: float = 1, highest: float = math.inf, *, whole: bool = True
) -> Variable[float | None]:
    """Declare a limit that is a whole number, or any number."""
    return Variable(fate, name, says, _number(lowest, highest, whole=whole), None)


def _number(lowest: float, highest: float = math.inf, *, whole: bool = True, unit: str = "") -> Callable[[str], Any]:
    """Return a reader of numbers in a range. It raises ValueError."""
    kind = f"a {'whole ' if whole else ''}number{unit and f' of {unit}'}"

    def read(text: str) -> float:
        try:
            value: float = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if lowest <= value <= highest and value < math.inf:  # which NaN is not
            return value
        most = "" if highest == math.inf else f" and at most {highest:,}"
        raise ValueError(f"must be {kind}{',' if unit else ' of'} at least {lowest}{most}")

    return read


def _whole_as_switch(text: str) -> bool:
    """Read a switch as vLLM-Ascend does, for which every number but 0 is on."""
    try:
        return bool(int(text))
    except ValueError:
        raise ValueError("must be 0 or 1") from None


def _gib(text: str) -> float | None:
    return _number(0, whole=False, unit="GiB")(text) if text else None


def _is_on(text: str) -> bool:
    return text not in ("", "0")


@dataclass(frozen=True)
class Environment:
    """The variables of a process, or others in their place. A value is read, and refused, when it is asked for."""

    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Environment:
        return cls(os.environ)

    def check(self) -> None:
        """Raise InvalidConfig if any variable is set to what it cannot be: said before a model is loaded."""
        for variable in vars(type(self)).values():
            if isinstance(variable, Variable):
                variable.value(self.variables)

    api_key = text("VLLM_API_KEY", "key of requests, as --api-key", option="api_key")
    keep_alive = text(
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "seconds that an idle connection is kept", option="timeout_keep_alive"
    )
    logging_level = Variable(
        "honoured", "VLLM_LOGGING_LEVEL", "least level of log lines, such as DEBUG", str, "INFO"
    )  # fmt: skip
    log_interval = Variable(
        "honoured",
        "VLLM_LOG_STATS_INTERVAL",
        "seconds between lines about throughput and load",
        _number(0, whole=False, unit="seconds"),
        10.0,
    )
    use_modelscope = Variable(
        "honoured", "VLLM_USE_MODELSCOPE", "ids are those of ModelScope", lambda text: text.lower() in ("true", "1"),
        False
    )  # fmt: skip
    kv_cache_gib = Variable("honoured", "VLLM_CPU_KVCACHE_SPACE", "memory for the KV cache, in GiB", _gib, None)
    media_threads = count(
        "VLLM_MEDIA_LOADING_THREAD_COUNT", "media of so many requests of a server are fetched at a time (64)"
    )
    media_workers = limit(
        "TILEWISE_MEDIA_WORKERS",
        "processes of a server that open and cut pictures (one a CPU, 8 at most); 0 = threads of its own process do",
        "own",
        lowest=0,
        highest=256,
    )
    max_answers = count("VLLM_MAX_N_SEQUENCES", "most answers to a prompt (`n`); absent = max_num_seqs")
    store_responses = Variable(
        "honoured", "VLLM_ENABLE_RESPONSES_API_STORE", "1 = /v1/responses are kept, in bounded memory", _is_on, False
    )
    stored_responses = count(
        "TILEWISE_MAX_STORED_RESPONSES", "most responses that are kept (1000); the oldest go", "own"
    )
    stored_responses_mib = count(
        "TILEWISE_MAX_STORED_RESPONSES_MB", "most MiB of the conversations of kept responses (256)", "own"
    )
    stored_responses_seconds = count(
        "TILEWISE_STORED_RESPONSES_SECONDS", "seconds that a response is kept (3600)", "own"
    )
    developer_routes = Variable(
        "honoured", "VLLM_SERVER_DEV_MODE", "1 = routes for developers: /reset_prefix_cache, /server_info ...", _is_on,
        False
    )  # fmt: skip
    media_file_mib = limit("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "most MiB of a picture's or a video's file")
    media_request_mib = limit("VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB", "most MiB of all files of a request")
    media_decoded_bytes = limit(
        "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES", "most bytes of pixels of all pictures of a request"
    )
    image_seconds = limit(
        "VLLM_IMAGE_FETCH_TIMEOUT", "seconds to fetch a picture, redirects and retries included", lowest=0.001,
        whole=False
    )  # fmt: skip
    video_seconds = limit(
        "VLLM_VIDEO_FETCH_TIMEOUT", "seconds to fetch a video, redirects and retries included", lowest=0.001,
        whole=False
    )  # fmt: skip
    media_retries = limit("VLLM_MEDIA_FETCH_MAX_RETRIES", "times that a fetch is tried again", lowest=0)
    max_image_pixels = text(
        "VLLM_MAX_IMAGE_PIXELS", "most pixels of a picture, as --max-image-pixels", option="max_image_pixels"
    )
    allow_redirects = Variable(
        "honoured", "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0 = media are not fetched from where an address redirects",
        lambda text: text.lower() not in ("0", "false"), True
    )  # fmt: skip
    video_frames = limit("VLLM_MAX_VIDEO_DECODE_FRAMES", "most frames of a video's file")
    allow_long = switch("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "max_model_len may exceed the length of the training")
    batch_invariant = switch("VLLM_BATCH_INVARIANT", "answers do not depend on the batch, as --batch-invariant")
    flashcomm = Variable(
        "honoured", "VLLM_ASCEND_ENABLE_FLASHCOMM1", "1 = ranks share out the rows of long steps between products",
        _whole_as_switch, False
    )  # fmt: skip
    nz_layout = limit(
        "VLLM_ASCEND_ENABLE_NZ",
        "matrices that an NPU keeps in its NZ layout: 0 none, 1 those of int8 (so without it), 2 all",
        lowest=0,
        highest=2,
    )
    threads = text("OMP_NUM_THREADS", "threads that compute")
    ray_address = text("RAY_ADDRESS", "the Ray cluster that is joined (default: this machine's, or a new one)")
    ray_wait = Variable(
        "own", "TILEWISE_RAY_WAIT", "seconds that ranks wait for room in a Ray cluster",
        _number(0.001, 1_000_000_000, whole=False, unit="seconds"), 600.0
    )  # fmt: skip
    gloo_interface = text("GLOO_SOCKET_IFNAME", "network interface by which ranks of several machines meet")
    cpu_kernels = kernels(
        "TILEWISE_CPU_KERNELS",
        "0 leaves all ops of the CPU to torch; avx2 and avx512 keep kernels to those instructions",
        *("avx2", "avx512"),
    )
    cuda_kernels = kernels("TILEWISE_CUDA_KERNELS", "0 leaves all ops of a GPU to torch")
    fp8_rows = switch(
        "TILEWISE_FP8_ROWS",
        "1 = matrices of FP8 meet rows that are rounded to FP8, on GPUs that multiply it: faster for many rows, and "
        "less exact",
        "own",
    )
    cxx = text("CXX", "C++ compiler that builds the kernels of the CPU (default: g++)", "own")
    _cache_home = text(
        "XDG_CACHE_HOME",
        "where they are kept (tilewise/kernels), and what GGUF files become (tilewise/gguf; default: ~/.cache)",
        "own",
    )
    _proc_bind = text("OMP_PROC_BIND", "whether threads stay on their cores")
    _wait_policy = text("OMP_WAIT_POLICY", "how OpenMP's threads wait; unless said, they soon sleep")
    _spin_count = text("GOMP_SPINCOUNT", "the same in numbers, for GNU's OpenMP")
    _http_proxy = text("HTTP_PROXY", "proxy for http, of media and downloads; http_proxy wins")
    _http_proxy_small = text("http_proxy", "the same")
    _https_proxy = text("HTTPS_PROXY", "proxy for https; https_proxy wins")
    _https_proxy_small = text("https_proxy", "the same")
    _all_proxy = text("ALL_PROXY", "proxy for both where they have none of their own; all_proxy wins")
    _all_proxy_small = text("all_proxy", "the same")
    _no_proxy = text("NO_PROXY", "hosts, domains and networks that are reached directly; no_proxy wins")
    _no_proxy_small = text("no_proxy", "the same")
    hf_endpoint = text("HF_ENDPOINT", "address of the Hugging Face hub, or of a mirror")
    _hub_offline = text("HF_HUB_OFFLINE", "1 = no hub is asked, only its cache")
    _transformers_offline = text("TRANSFORMERS_OFFLINE", "the same as HF_HUB_OFFLINE")
    modelscope_endpoint = text("MODELSCOPE_ENDPOINT", "address of ModelScope")
    modelscope_cache = text("MODELSCOPE_CACHE", "cache folder of ModelScope's downloads")
    modelscope_token = text("MODELSCOPE_API_TOKEN", "token for private models of ModelScope")
    service_name = Variable(
        "honoured", "OTEL_SERVICE_NAME", "name of the server in traces; OpenTelemetry's own variables hold, too", str,
        "tilewise"
    )  # fmt: skip
    chosen_frames = limit(
        "TILEWISE_MAX_CHOSEN_FRAMES", "most frames that are taken of a video", "own", highest=MAX_FRAMES
    )
    decode_seconds = limit(
        "TILEWISE_VIDEO_DECODE_TIMEOUT", "seconds to decode a video", "own", lowest=0.001, whole=False
    )
    media_handles_mib = limit(
        "TILEWISE_MAX_MEDIA_HANDLES_MB",
        "MiB of files that are kept under the `uuid` of their parts; 0 = none",
        "own",
        lowest=0,
    )
    _home = text("TILEWISE_HOME", "folder of records of services, their logs and the history of `tilewise chat`", "own")
    _state_home = text("XDG_STATE_HOME", "where that folder is, unless TILEWISE_HOME says", "own")
    _openai_key = text("OPENAI_API_KEY", "key that `tilewise bench serve` sends (else VLLM_API_KEY)", "own")
    no_color = text("NO_COLOR", "no colours in `tilewise inspect`", "own")
    terminal = text("TERM", "dumb = no styles in `tilewise chat`", "own")

    @property
    def search_path(self) -> str | None:
        """PATH, where programs are looked up."""
        return self.variables.get("PATH")

    @property
    def python_path(self) -> str | None:
        return self.variables.get("PYTHONPATH")

    @property
    def cache_folder(self) -> Path:
        return Path(self._cache_home or "~/.cache").expanduser() / "tilewise"

    @property
    def state_folder(self) -> Path:
        """TILEWISE_HOME, or the folder where XDG has the state of a program."""
        if self._home:
            return Path(self._home).expanduser()
        return Path(self._state_home or "~/.local/state").expanduser() / "tilewise"

    @property
    def client_key(self) -> str:
        """Key that a benchmark sends to a server."""
        return self._openai_key or self.api_key

    @property
    def offline(self) -> bool:
        """True if the network is not to be used: HF_HUB_OFFLINE counts for both hubs, as it does in vLLM."""
        values = (self._hub_offline.upper(), self._transformers_offline.upper())
        return any(value in ("1", "ON", "YES", "TRUE") for value in values)

    @property
    def says_how_threads_wait(self) -> bool:
        return any(entry.name in self.variables for entry in (Environment._wait_policy, Environment._spin_count))

    def proxy(self, scheme: str) -> tuple[str, str] | None:
        """Return variable and value of a proxy. Small letters win; HTTP_PROXY counts only outside CGI, where a client
        could set it."""
        capitals = () if scheme == "http" and "REQUEST_METHOD" in self.variables else (f"{scheme.upper()}_PROXY",)
        names = (f"{scheme}_proxy", *capitals, "all_proxy", "ALL_PROXY")
        return next(((name, self.variables[name]) for name in names if self.variables.get(name)), None)

    @property
    def no_proxy(self) -> str:
        return self._no_proxy_small or self._no_proxy

    @property
    def shown(self) -> dict[str, str]:
        """Variables of vLLM's and of ours that are set, but for keys."""
        names = sorted(name for name in self.variables if name.startswith(("VLLM_", "TILEWISE_")) and "KEY" not in name)
        return {name: self.variables[name] for name in names}

    def explained(self) -> list[str]:
        return [
            f"{entry.name}: {entry.says}." for entry in UNREAD if entry.fate == "told" and entry.name in self.variables
        ]

    def unknown(self) -> list[str]:
        """Return a line in vLLM's words for each variable VLLM_... that nobody knows; it has no effect."""
        known = {entry.name for entry in VARIABLES}
        return [
            f"Unknown vLLM environment variable detected: {name}.{_meant(name, known)}"
            for name in sorted(self.variables)
            if name.startswith("VLLM_") and name not in known
        ]


def _meant(name: str, known: Collection[str]) -> str:
    """Return a sentence with the variable that may be meant; a common beginning alone makes none alike."""
    near = nearest(name, known, cutoff=0.9)
    return f" Did you mean {near}?" if near else ""


def _unread(fate: Fate, variables: Mapping[str, str]) -> Iterator[Variable[str]]:
    for name, says in variables.items():
        yield text(name, says, fate)


UNREAD: tuple[Variable[Any], ...] = (
    *_unread(
        "told",
        {
            "VLLM_USE_V1": "there is one engine, and nothing to choose",
            "VLLM_ASCEND_ENABLE_FUSED_MC2": "sums over ranks are torch.distributed's, not fused with products",
            "VLLM_TORCH_PROFILER_WITH_STACK": "there is no profiler to be started by a request",
            "VLLM_TORCH_PROFILER_DIR": "there is no profiler to be started by a request",
        },
    ),
    *_unread(
        "other device",
        {
            "PYTORCH_NPU_ALLOC_CONF": "memory of NPUs, which torch_npu reads",
            "PYTORCH_CUDA_ALLOC_CONF": "memory of GPUs",
            "TASK_QUEUE_ENABLE": "launches of NPUs, which torch_npu reads",
            "HCCL_OP_EXPANSION_MODE": "sums across NPUs, which HCCL reads",
            "HCCL_BUFFSIZE": "sums across NPUs, which HCCL reads",
            "ASCEND_RT_VISIBLE_DEVICES": "NPUs that a process sees, which CANN reads",
        },
    ),
    *_unread("told", WITHOUT_EFFECT),
    *_unread("other device", dict.fromkeys(OF_THE_SYSTEM, "other programs'")),
)
READ: tuple[Variable[Any], ...] = tuple(entry for entry in vars(Environment).values() if isinstance(entry, Variable))
VARIABLES = (*READ, *UNREAD)
