"""Turns vLLM's options into those that there are here, alike for the command line, for files and for Python."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tilewise.errors import InvalidConfig, did_you_mean
from tilewise.foreign.engine import ENGINE, IN_A_PROGRAM
from tilewise.foreign.entry import ForeignOption
from tilewise.foreign.graphs import asks_for_eager, check_compilation, explain_additional, largest_graph
from tilewise.ignored import Ignored

REMARKS = {"trust_remote_code": "code of a checkpoint is never run, nor is it needed"}
"""Options whose value changes nothing -> the reason."""
MANY = 999  # vLLM's limit where none is set
_OTHER_MEDIA = ("audio", "vision_chunk")
"""Kinds of media that prompts of other models hold."""
LIMIT_KEYS = ("count", "num_frames", "width", "height")
_BACKENDS = ("auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer")
_VIDEO_KEYS = ("num_frames", "fps")
_EMPTY_IS_NONE = ("allowed_local_media_path", "tokenizer", "mm_processor_kwargs")
"""Options that vLLM's programs leave out by an empty text or object."""


@dataclass
class Translated:
    """The options that a caller asks for, as far as they exist here, and what has to be said about the rest."""

    options: dict[str, Any]
    ignored: Ignored = field(default_factory=Ignored)
    lines: list[str] = field(default_factory=list)
    """Lines for the log about options that have no effect by themselves."""
    warnings: list[str] = field(default_factory=list)


def translate_engine(options: Mapping[str, Any], known: Collection[str]) -> Translated:
    """Translate keywords of vLLM's LLM and EngineArgs to options among those `known`.

    Raises InvalidConfig that names all that are not possible. A keyword that vLLM lacks, too, is left as it is.
    """
    return translate(options, known, (*ENGINE, *IN_A_PROGRAM))


def translate(options: Mapping[str, Any], known: Collection[str], foreign: Iterable[ForeignOption]) -> Translated:
    """Translate options by the entries in `foreign`. Errors are those of `translate_engine`."""
    values = _renamed(options)
    _check_replicas(values)
    found = Translated(values)
    entries = {entry.name: entry for entry in foreign}
    # An entry whose name is an option here as well is listed for the values that the option cannot take.
    _check(values, [entry for entry in entries.values() if entry.accepts or entry.name not in known], found.ignored)
    structured = _structured(values.get("structured_outputs_config") or {})
    frames = _media_io(values.get("media_io_kwargs") or {}, found)
    if values.get("limit_mm_per_prompt"):
        values["limit_mm_per_prompt"], about = counts_of(values["limit_mm_per_prompt"])
        found.lines += about
    graphs = _compilation(values.get("compilation_config"))
    captured: dict[str, Any] = {"enforce_eager": True} if asks_for_eager(graphs, _level(values)) else {}
    found.lines += check_compilation(graphs, values.get("max_num_seqs"))
    captured |= largest_graph(graphs) if "max_graph_size" in known else {}
    lines, found.warnings = explain_additional(values.get("additional_config") or {})
    found.lines += lines
    additional = values.get("additional_config") or {}
    binding = {"cpu_binding": True} if additional.get("enable_cpu_binding") is True and "cpu_binding" in known else {}
    plain = {name: _plain(name, value) for name, value in values.items() if name in known or name not in entries}
    found.options = frames | captured | structured | binding | plain
    return found


def _check(values: Mapping[str, Any], entries: Iterable[ForeignOption], ignored: Ignored) -> None:
    given = [(entry, values[entry.name]) for entry in entries if entry.name in values]
    refused = [
        f"{entry.name}={value!r} is not possible: {entry.says}" for entry, value in given if entry.refuses(value)
    ]
    if refused:
        raise InvalidConfig(". ".join(refused) + ".")
    for entry, value in given:
        if not entry.silent and value is not None:
            ignored.add(entry.name, entry.says)
    for name, says in REMARKS.items():
        if values.get(name):
            ignored.add(name, says)


def _check_replicas(values: dict[str, Any]) -> None:
    """Take out data_parallel_size_local where it asks for all replicas on this machine, which is so anyway.

    Raises InvalidConfig for one of several replicas by its rank.
    """
    size, rank = values.get("data_parallel_size") or 1, values.get("data_parallel_rank")
    if values.get("data_parallel_size_local") == size:
        del values["data_parallel_size_local"]
    if size != 1 and rank is not None:
        raise InvalidConfig(
            f"data_parallel_rank={rank!r} is not possible with data_parallel_size={size!r}: one server stands before "
            "all replicas; leave it out."
        )


def _level(values: Mapping[str, Any]) -> str | None:
    level = values.get("optimization_level")
    return None if level is None else str(level)


def _plain(name: str, value: Any) -> Any:
    """Return the value as the option has it: None for an empty text, and the name of a torch type."""
    if name in _EMPTY_IS_NONE and not value:
        return None
    if name == "hf_token" and value is True:  # "the one that there is", as without the option
        return None
    is_torch_type = name == "dtype" and str(value).startswith("torch.")
    return str(value).removeprefix("torch.") if is_torch_type else value


def _compilation(value: Any) -> dict[str, Any]:
    """Return compilation_config as a dict. A number, which vLLM takes too, is the mode alone. Raises InvalidConfig."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"mode": value}
    if value is not None and not isinstance(value, Mapping):
        raise InvalidConfig(f"compilation_config must be a dict, or the number of a mode, got {value!r:.80}.")
    return dict(value or {})


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in options.items() if name not in _OTHER_NAMES}
    for name, value in options.items():
        if name in _OTHER_NAMES and value is not None:
            _OTHER_NAMES[name](values, value)
    return values


def _key(option: str, key: str) -> Callable[[dict[str, Any], Any], None]:
    """Return a function that puts a value into a key of an object, unless the key is there already."""

    def put(values: dict[str, Any], value: Any) -> None:
        values[option] = {key: value, **(values.get(option) or {})}

    return put


def _sizes(values: dict[str, Any], sizes: Any) -> None:
    if sizes:
        whole = [int(size) if str(size).isdecimal() else size for size in sizes]
        _key("compilation_config", "cudagraph_capture_sizes")(values, whole)


def _no_media_cache(values: dict[str, Any], off: Any) -> None:
    if off:
        values["mm_processor_cache_gb"] = 0


def _no_request_log(values: dict[str, Any], off: Any) -> None:
    if off:
        values.setdefault("enable_log_requests", False)


_OTHER_NAMES: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "disable_mm_preprocessor_cache": _no_media_cache,
    "disable_log_requests": _no_request_log,
    "guided_decoding_backend": _key("structured_outputs_config", "backend"),
    "spec_method": _key("speculative_config", "method"),
    "spec_model": _key("speculative_config", "model"),
    "speculative_model": _key("speculative_config", "model"),
    "spec_tokens": _key("speculative_config", "num_speculative_tokens"),
    "num_speculative_tokens": _key("speculative_config", "num_speculative_tokens"),
    "ngram_prompt_lookup_max": _key("speculative_config", "prompt_lookup_max"),
    "ngram_prompt_lookup_min": _key("speculative_config", "prompt_lookup_min"),
    "cuda_graph_sizes": _sizes,
    "cudagraph_capture_sizes": _sizes,
    "max_cudagraph_capture_size": _key("compilation_config", "max_cudagraph_capture_size"),
}
"""Option that is spelt otherwise here -> a function that puts its value into the options that there are."""


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


def _media_io(kwargs: Mapping[str, Any], found: Translated) -> dict[str, Any]:
    """Return the options that `media_io_kwargs` stands for. Raises InvalidConfig for a key that is none here."""
    for kind, options in kwargs.items():
        keys = _VIDEO_KEYS if kind == "video" else ()
        for key in options:
            if key not in keys:
                raise InvalidConfig(
                    f"media_io_kwargs: {kind} has no {key!r} here; num_frames and fps of video are all that can be set."
                    f"{did_you_mean(key, keys)}"
                )
    video = dict(kwargs.get("video") or {})
    found.lines += [f"media_io_kwargs: became --{key.replace('_', '-')} {value}." for key, value in video.items()]
    return video


_STRUCTURED = ("disable_additional_properties", "disable_any_whitespace")


def _structured(config: Mapping[str, Any]) -> dict[str, Any]:
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
