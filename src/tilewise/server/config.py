"""ServerConfig: the options of the HTTP server. Names, meanings and defaults are vLLM's where it has the option.

Options of the engine are in EngineConfig; `tilewise serve` makes both from one command line.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from tilewise.errors import InvalidConfig
from tilewise.host import require_extra
from tilewise.inputs.tool_text import ToolFormName
from tilewise.option import MANY, check_range, check_types, option, whole
from tilewise.types import Detail

# OpenSSL looks for the certificate by the kind of its key: to an RSA key, one of another kind is none at all.
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def check_tls(*, key: str, certificate: str, authorities: str | None, ciphers: str | None) -> None:
    """Raise InvalidConfig if a file or the ciphers of TLS cannot be used, naming option, file and remedy."""
    with _reading("ssl_certfile", certificate, "certificate", "CERTIFICATE"):
        _context().load_verify_locations(certificate)
    context = _context()
    with _reading("ssl_keyfile", key, "private key", "PRIVATE KEY"):
        try:
            context.load_cert_chain(certificate, key, lambda: _refuse_encrypted(key))
        except ssl.SSLError as error:
            if error.reason not in _MISMATCHES:
                raise
            raise InvalidConfig(
                f"ssl_keyfile: {key} is not the key of the first certificate in {certificate}: name the two that were "
                "made together, the server's own certificate before those of its authorities."
            ) from None
    if authorities is not None:
        with _reading("ssl_ca_certs", authorities, "certificate", "CERTIFICATE"):
            context.load_verify_locations(authorities)
    try:
        context.set_ciphers(ciphers or "DEFAULT")
    except ssl.SSLError:
        raise InvalidConfig(
            f"ssl_ciphers={ciphers!r} names no cipher of this OpenSSL: `openssl ciphers` lists them."
        ) from None


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def _refuse_encrypted(key: str) -> str:
    """Raise InvalidConfig: OpenSSL would ask for the passphrase at the terminal, which a server may not have."""
    raise InvalidConfig(
        f"ssl_keyfile: {key} is encrypted, and nobody can be asked for its passphrase: write it without, with "
        f"`openssl pkey -in {key} -out NEW_FILE`, readable by the server alone."
    )


@contextmanager
def _reading(option: str, path: str, what: str, mark: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError:
        raise InvalidConfig(
            f"{option}: {path} holds no {what} in PEM form: name the file with a line -----BEGIN {mark}-----."
        ) from None
    except OSError as error:
        raise InvalidConfig(f"{option}: {path} cannot be read ({error.strerror}): name a file that can.") from None


ToolCallParser = ToolFormName
ReasoningParser = Literal["qwen3", "deepseek_r1", "openai_gptoss"]
UvicornLogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The options of the server. Each of them works, or is refused with the reason."""

    host: str | None = option(None, "address to listen at (default: all interfaces, as vLLM; name one to be closed)",
                              "address")  # fmt: skip
    port: int = option(8000, "port to listen at; 0 = one that is free", "address")
    uds: str | None = option(None, "path of a Unix socket to listen at, instead of host and port", "address")
    root_path: str = option("", "path under which a proxy in front shows the server, such as /vision", "address")
    timeout_keep_alive: int = option(5, "seconds that an idle connection is kept", "address")
    ssl_keyfile: str | None = option(None, "file of the TLS key, with ssl_certfile", "address")
    ssl_certfile: str | None = option(None, "file of the TLS certificate, with ssl_keyfile", "address")
    ssl_ca_certs: str | None = option(None, "file of authorities that clients' certificates are checked by", "address")
    ssl_cert_reqs: int = option(0, "certificate of clients: 0 = none, 1 = checked if sent, 2 = needed", "address")
    ssl_ciphers: str | None = option(None, "TLS ciphers, as OpenSSL lists them", "address")

    api_key: tuple[str, ...] = option(
        (),
        "keys, one of which a request has to bring as `Authorization: Bearer KEY` (default: VLLM_API_KEY, "
        "or none); all routes but /health, /ping, /version and /metrics ask for it",
        "access",
        shown=False,
    )
    metrics_with_key: bool = option(False, "ask for a key at /metrics and /version, too", "access")
    allowed_origins: tuple[str, ...] = option(("*",), "origins of web pages that may call, a JSON list", "access")
    allowed_methods: tuple[str, ...] = option(("*",), "methods that those pages may use, a JSON list", "access")
    allowed_headers: tuple[str, ...] = option(("*",), "headers that those pages may send, a JSON list", "access")
    allow_credentials: bool = option(False, "let those pages send cookies; needs named allowed_origins", "access")
    disable_fastapi_docs: bool = option(False, "no /docs, /redoc and /openapi.json", "access")
    enable_request_id_headers: bool = option(False, "answer with X-Request-Id, the caller's or a new one", "access")

    max_body_mb: float = option(64, "largest body of a request, in MiB; larger ones get 413", "limits")
    h11_max_incomplete_event_size: int = option(4 * 2**20, "most bytes of request line and headers", "limits")
    h11_max_header_count: int = option(256, "most headers of a request", "limits")
    max_num_queued_reqs: int | None = option(
        None, "requests that may wait; further ones get 429 and Retry-After (default: no limit)", "limits"
    )
    max_num_queued_tokens: int | None = option(
        None, "prompt tokens that may wait; further requests get 429 and Retry-After (default: no limit)", "limits"
    )
    request_timeout: float | None = option(
        None, "seconds that a request may take in all before it is given up (default: no limit)", "limits"
    )
    shutdown_timeout: float = option(
        0, "seconds that running requests have to finish when the server is told to stop; 0 = none", "limits"
    )
    max_engine_restarts: int = option(
        3, "times in engine_restart_window that a dead engine process is started again; then the server ends", "limits"
    )
    engine_restart_window: float = option(300, "seconds in which max_engine_restarts are counted", "limits")

    served_model_name: tuple[str, ...] = option(
        (),
        "names that requests may give as `model`; the first is in answers and metrics (default: the model)",
        "answers",
    )
    generation_config: str = option(
        "auto",
        "defaults of sampling: auto = the checkpoint's generation_config.json, vllm = none, or a folder with one",
        "answers",
    )
    override_generation_config: dict[str, Any] | None = option(
        None, 'defaults of sampling that win over the file\'s, as {"temperature": 0.2}', "answers"
    )
    default_chat_template_kwargs: dict[str, Any] | None = option(
        None, 'chat_template_kwargs of requests without, as {"enable_thinking": true}', "answers"
    )
    enable_auto_tool_choice: bool = option(
        False, 'let the model decide about calls of tools (tool_choice "auto")', "answers"
    )
    tool_call_parser: ToolCallParser | None = option(
        None, "how calls of tools are written: as the model was trained, unless you say otherwise", "answers"
    )
    reasoning_parser: ReasoningParser | None = option(
        None, "take <think>...</think> out of `content` and into `reasoning`; GPT-OSS needs no flag", "answers"
    )
    detail_tiles: dict[Detail, int] | None = option(
        None, 'most tiles of a picture by the `detail` of its image_url, as {"low": 1} (default: no effect)', "answers"
    )
    ui: bool = option(
        False, "show the web chat at /ui, where whoever has a key may talk (extra tilewise[ui])", "access"
    )
    enable_per_request_metrics: bool = option(
        False, "times of each request under `metrics` of its answer, and of a stream's chunk with the usage", "answers"
    )
    enable_tokenizer_info_endpoint: bool = option(
        False, "answer GET /tokenizer_info with the tokenizer's configuration", "answers"
    )
    return_tokens_as_token_ids: bool = option(
        False, "write tokens of log-probabilities as token_id:N, as the field of a request does", "answers"
    )
    strict_fields: bool = option(
        False, "refuse request fields that are unknown, instead of naming them in the answer's header", "answers"
    )
    stream_interval: int = option(1, "tokens that a streamed chunk waits for", "answers")
    sse_keep_alive_interval: float = option(
        0, "seconds after which a stream that says nothing sends a comment, for proxies in front; 0 = never", "answers"
    )
    enable_force_include_usage: bool = option(False, "count tokens in every stream, asked for or not", "answers")

    enable_log_requests: bool = option(False, "log each request's id, options and prompt", "logging")
    enable_log_outputs: bool = option(False, "log answers too; needs enable_log_requests", "logging")
    max_log_len: int | None = option(None, "characters of a prompt or an answer that are logged", "logging")
    uvicorn_log_level: UvicornLogLevel = option("info", "least level of the HTTP library's lines", "logging")
    disable_uvicorn_access_log: bool = option(False, "no line a request", "logging")
    disable_access_log_for_endpoints: tuple[str, ...] = option(
        (), 'paths without a line a request, as "/health,/metrics"', "logging"
    )
    otlp_traces_endpoint: str | None = option(
        None, "where spans of requests are sent, as http://localhost:4318/v1/traces; needs tilewise[otel]", "logging"
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name, (least, most) in _RANGES.items():
            check_range(name, getattr(self, name), least, most)
        self._check_address()
        self._check_access()
        self._check_answers()
        self._check_logging()

    def _check_address(self) -> None:
        if self.uds is not None:
            for name in ("host", "port"):
                if getattr(self, name) != getattr(ServerConfig, name):
                    raise InvalidConfig(f"uds={self.uds!r} takes the place of {name}: give one of them.")
            if not Path(self.uds).absolute().parent.is_dir():
                raise InvalidConfig(f"uds: there is no folder {Path(self.uds).absolute().parent}.")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise InvalidConfig(f"root_path must begin with / and not end with one, got {self.root_path!r}.")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            missing = "ssl_keyfile" if self.ssl_keyfile is None else "ssl_certfile"
            raise InvalidConfig(f"TLS needs ssl_keyfile and ssl_certfile: {missing} is missing.")
        self._check_tls()
        self._check_page()

    def _check_page(self) -> None:
        """Check the option `ui`: its page asks this server over plain HTTP."""
        if not self.ui:
            return
        if self.uds is not None or self.ssl_certfile is not None:
            raise InvalidConfig("ui needs a port, and no TLS: run `tilewise ui --server URL` beside the server.")
        require_extra("gradio", "ui", "--ui")

    def _check_tls(self) -> None:
        for name in ("ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"):
            if self.ssl_certfile is None and getattr(self, name) != getattr(ServerConfig, name):
                raise InvalidConfig(f"{name} has no effect without ssl_keyfile and ssl_certfile: give them, too.")
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            raise InvalidConfig(f"ssl_cert_reqs={self.ssl_cert_reqs} needs ssl_ca_certs to check certificates by.")
        for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise InvalidConfig(f"{name}: there is no file {path}: name one that is there.")
        if self.ssl_keyfile is not None and self.ssl_certfile is not None:
            check_tls(
                key=self.ssl_keyfile,
                certificate=self.ssl_certfile,
                authorities=self.ssl_ca_certs,
                ciphers=self.ssl_ciphers,
            )

    def _check_access(self) -> None:
        if any(not key.strip() or not key.isascii() or not key.isprintable() for key in self.api_key):
            raise InvalidConfig("api_key: a key is empty, or has characters that no header can carry.")
        if self.metrics_with_key and not self.api_key:
            raise InvalidConfig("metrics_with_key has no effect without api_key, when nothing asks for a key.")
        if self.allow_credentials and "*" in self.allowed_origins:
            raise InvalidConfig(
                'allow_credentials with allowed_origins ["*"] would let any web page act as the user who sees it: '
                'name the origins, as ["https://chat.example"].'
            )

    def _check_answers(self) -> None:
        if any(not name.strip() for name in self.served_model_name):
            raise InvalidConfig("served_model_name: a name is empty.")
        source = self.generation_config
        if source not in ("auto", "vllm") and not Path(source, "generation_config.json").is_file():
            raise InvalidConfig(
                f"generation_config must be auto, vllm or a folder with generation_config.json, got {source!r}."
            )
        for name, tiles in (self.detail_tiles or {}).items():
            if name not in get_args(Detail):
                raise InvalidConfig(f"detail_tiles knows {', '.join(get_args(Detail))}, got {name!r}.")
            if (count := whole(tiles)) is None or count < 1:
                raise InvalidConfig(f"detail_tiles: {name} must be a whole number from 1 on, got {tiles!r}.")

    def _check_logging(self) -> None:
        if self.enable_log_outputs and not self.enable_log_requests:
            raise InvalidConfig("enable_log_outputs needs enable_log_requests: give both.")
        if self.max_log_len is not None and not self.enable_log_requests:
            raise InvalidConfig("max_log_len has no effect without enable_log_requests: give both.")
        for path in self.disable_access_log_for_endpoints:
            if not path.startswith("/"):
                raise InvalidConfig(f"disable_access_log_for_endpoints: a path begins with /, got {path!r}.")
        target = self.otlp_traces_endpoint
        if target is not None and (urlsplit(target).scheme not in ("http", "https") or not urlsplit(target).hostname):
            raise InvalidConfig(f"otlp_traces_endpoint must be an http(s) URL, got {target!r}.")

    @property
    def url(self) -> str:
        """The URL at which a client on this machine finds the server; http(s)://localhost for a Unix socket."""
        scheme = "https" if self.ssl_certfile else "http"
        if self.uds is not None:
            return f"{scheme}://localhost"
        host = (self.host or "0.0.0.0").strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "timeout_keep_alive": (0, MANY),
    "ssl_cert_reqs": (0, 2),
    "max_body_mb": (0.001, 2**20),
    "h11_max_incomplete_event_size": (1024, MANY),
    "h11_max_header_count": (1, MANY),
    "max_num_queued_reqs": (1, MANY),
    "max_num_queued_tokens": (1, MANY),
    "request_timeout": (0.001, MANY),
    "shutdown_timeout": (0, MANY),
    "max_engine_restarts": (0, MANY),
    "engine_restart_window": (1, MANY),
    "stream_interval": (1, MANY),
    "sse_keep_alive_interval": (0, MANY),
    "max_log_len": (0, MANY),
}
