"""Flags of vLLM's server, 0.10 to 0.33, that are no options here, and what becomes of each."""

from __future__ import annotations

from typing import Any, Literal

from tilewise.foreign.entry import ForeignOption, refused, taken

_OBJECT, _TEXTS = dict[str, Any], tuple[str, ...]
_NO_CODE = "no code of others is put into the server; use a proxy"
_ONE_SERVER = "one process serves; start several behind a proxy"
_NOT_SPOKEN = "OpenAI's API is what is spoken"

SERVER: tuple[ForeignOption, ...] = (
    *taken("built in", _ONE_SERVER, int, "api_server_count"),
    *refused("not yet", "a server without HTTP is for several machines", bool, headless=False),
    *taken("built in", _ONE_SERVER, int, "data_parallel_supervisor_port", "dp_supervisor_probe_failure_threshold"),
    *taken("built in", _ONE_SERVER, float, "dp_supervisor_probe_interval_s", "dp_supervisor_probe_timeout_s"),
    *taken("built in", "the engine has a process of its own, so that it can die alone", bool,
           "disable_frontend_multiprocessing"),
    *refused("not yet", "HTTP is what is spoken", bool, grpc=False, enable_scale_out=False),
    *refused("not yet", "HTTP is what is spoken", int, grpc_port=None),
    *refused("never", _NO_CODE, _TEXTS, middleware=()),
    *refused("never", _NO_CODE, str, tool_parser_plugin=""),
    *refused("not yet", "the server calls no tools; it names those that a model wants called", str, tool_server=""),
    *refused("not yet", "certificates are read once, at the start", bool, enable_ssl_refresh=False),
    *refused("not yet", "/docs loads its page from the network", bool, enable_offline_docs=False),
    *refused("not yet", "adapters are not loaded: merge them into the checkpoint", _TEXTS, lora_modules=()),
    *refused("never", "a model is asked as it was trained to be; `tilewise inspect MODEL` shows the prompt and "
             "compares a Jinja file", str, chat_template=""),
    *refused("never", "templates of callers are not run", bool, trust_request_chat_template=False),
    *refused("never", "answers are the assistant's", str, response_role="assistant"),
    *taken("built in", "the built-in templates take messages in both forms", Literal["auto", "string", "openai"],
           "chat_template_content_format"),
    *taken("built in", "requests may set mm_processor_kwargs, within the limits of the model", bool,
           "trust_request_mm_kwargs"),
    *taken("built in", "tools are not in the prompt then, as they may not be called", bool,
           "exclude_tools_when_tool_choice_none"),
    *taken("built in", "a call that is asked for by name or required follows its schema", str, "tool_strict_level"),
    *refused("not yet", "efforts are what the template knows; set chat_template_kwargs", _OBJECT,
             reasoning_effort_map={}),
    *taken("built in", "a stream says nothing while it waits: raise the timeout of a proxy in front", int,
           "sse_keep_alive_interval"),
    *refused("built in", "usage always has them", bool, enable_prompt_tokens_details=(True, False)),
    *taken("built in", "/load always counts running requests", bool, "enable_server_load_tracking"),
    *taken("built in", "answers are logged whole, not piece by piece", bool, "enable_log_deltas"),
    *taken("built in", "errors of this program are logged with their trace, those of callers without", bool,
           "log_error_stack"),
    *taken("built in", f"{_NOT_SPOKEN}, and nothing of Cohere's", str, "cohere_format"),
    *taken("built in", f"{_NOT_SPOKEN}, and nothing of Cohere's", bool, "cohere_is_reasoning_model"),
    *taken("built in", f"{_NOT_SPOKEN}, and nothing of Anthropic's", str, "anthropic_disabled_thinking_effort"),
    *taken("built in", "models answer; there is no ranking", bool, "enable_flash_late_interaction"),
    *taken("built in", "system_fingerprint is null", Literal["full", "hash", "none", "custom"],
           "fingerprint_mode"),
    *taken("built in", "system_fingerprint is null", str, "fingerprint_value"),
    *taken("other name", "True is enable_log_requests=False, which is the default", bool, "disable_log_requests"),
)  # fmt: skip
