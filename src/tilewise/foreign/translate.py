"""ForeignOption: an option of vLLM that is none here, and how options become those that there are.

That goes alike for the command line, for files and for Python.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tilewise.errors import InvalidConfig
from tilewise.foreign.additional import (
    checked_additional,
    explain_additional,
    options_of_additional,
    unknown_additional,
)
from tilewise.foreign.objects import (
    Put,
    asks_for_eager,
    check_compilation,
    compilation_of,
    counts_of,
    largest_graph,
    options_of_media_io,
    options_of_structured,
)
from tilewise.ignored import Ignored, asks_nothing

Fate = Literal["built in", "other device", "other name", "not yet", "never"]
"""built in: it is so anyway; other device: it matters where something else computes; other name: an option here has
another name for it; not yet and never are refused."""
NOTHING: tuple[Any, ...] = (None, "", {}, [], ())
"""Values by which vLLM says that an option was not given."""


@dataclass(frozen=True, slots=True)
class ForeignOption:
    """An option of vLLM that is none here: `hint` is its type, `fate` what becomes of it."""

    name: str
    hint: Any
    fate: Fate
    says: str
    """A phrase for the log that says what became of it, or why it is refused."""
    accepts: tuple[Any, ...] | None = None
    """Values that are taken, since they ask for what is so anyway, beside those of NOTHING; None = all."""
    by_key: bool = False
    """True for an object whose keys are explained one by one."""
    put: Put | None = None
    """A function that puts the value into the options that it is spelt as here; None = it has one name."""

    def refuses(self, value: Any) -> bool:
        return self.accepts is not None and not asks_nothing(value, (*NOTHING, *self.accepts))

    @property
    def not_logged(self) -> bool:
        """True for an option of which the log says nothing.

        Either the value that is left asks for what is so anyway, or what became of it is said elsewhere.
        """
        return self.fate in ("not yet", "never", "other name") or self.by_key


KINDS: dict[str, Any] = {
    "text": str,
    "switch": bool,
    "whole": int,
    "number": float,
    "object": dict[str, Any],
    "texts": tuple[str, ...],
}


def taken(fate: Fate, says: str, **names: str) -> Iterator[ForeignOption]:
    """Yield options that are taken whatever they say, and change no answer: `kind="name name ..."`."""
    for kind, of_kind in names.items():
        for name in of_kind.split():
            yield ForeignOption(name, KINDS[kind], fate, says)


def refused(fate: Fate, says: str, hint: Any, **accepted: Any) -> Iterator[ForeignOption]:
    """Yield options that may only ask for what is so anyway: `name=value`, or a tuple of values."""
    for name, value in accepted.items():
        yield ForeignOption(name, hint, fate, says, value if isinstance(value, tuple) else (value,))


def other_name(says: str, hint: Any, **put: Put) -> Iterator[ForeignOption]:
    """Yield options that are spelt otherwise here: `name=` a function that puts the value where it belongs."""
    for name, put_value in put.items():
        yield ForeignOption(name, hint, "other name", says, put=put_value)


SHORT_NAMES = {
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "data_parallel_size": "-dp",
    "data_parallel_rank": "-dpn",
    "data_parallel_start_rank": "-dpr",
    "data_parallel_size_local": "-dpl",
    "data_parallel_address": "-dpa",
    "data_parallel_rpc_port": "-dpp",
    "data_parallel_backend": "-dpb",
    "data_parallel_hybrid_lb": "-dph",
    "data_parallel_external_lb": "-dpe",
    "data_parallel_multi_port_external_lb": "-dpm",
    "decode_context_parallel_size": "-dcp",
    "prefill_context_parallel_size": "-pcp",
    "nnodes": "-n",
    "node_rank": "-r",
    "enable_expert_parallel": "-ep",
    "api_server_count": "-asc",
    "attention_config": "-ac",
    "compilation_config": "-cc",
    "diffusion_config": "-dc",
    "speculative_config": "-sc",
    "optimization_level": "-O",
    "quantization": "-q",
}
"""vLLM's short names of flags."""
REMARKS = {"trust_remote_code": "code of a checkpoint is never run, nor is it needed"}
"""Options whose value changes nothing -> the reason."""
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


def translate(options: Mapping[str, Any], known: Collection[str], foreign: Iterable[ForeignOption]) -> Translated:
    """Translate vLLM's options by their entries in `foreign` to options among those `known`.

    Raises InvalidConfig that names all that are not possible. A keyword that vLLM lacks, too, is left as it is.
    """
    entries = {entry.name: entry for entry in foreign}
    values = _renamed(options, entries)
    _check_replicas(values)
    found = Translated(values)
    _check(values, entries.values(), found.ignored)
    of_objects = {name: value for name, value in _of_objects(values, found).items() if name in known}
    plain = {name: _plain(name, value) for name, value in values.items() if name in known or name not in entries}
    found.options = of_objects | plain
    return found


def _of_objects(values: dict[str, Any], found: Translated) -> dict[str, Any]:
    """Return the options that vLLM's objects stand for, and put what has to be said about them into `found`."""
    structured = options_of_structured(values.get("structured_outputs_config") or {})
    video, found.lines = options_of_media_io(values.get("media_io_kwargs") or {})
    if values.get("limit_mm_per_prompt"):
        values["limit_mm_per_prompt"], about = counts_of(values["limit_mm_per_prompt"])
        found.lines += about
    graphs = compilation_of(values.get("compilation_config"))
    eager = {"enforce_eager": True} if asks_for_eager(graphs, values.get("optimization_level")) else {}
    found.lines += check_compilation(graphs, values.get("max_num_seqs"))
    additional = checked_additional(values.get("additional_config"))
    found.lines += explain_additional(additional)
    found.warnings += unknown_additional(additional)
    return video | eager | largest_graph(graphs) | structured | options_of_additional(additional)


def _check(values: Mapping[str, Any], entries: Iterable[ForeignOption], ignored: Ignored) -> None:
    given = [(entry, values[entry.name]) for entry in entries if entry.name in values]
    refused = [
        f"{entry.name}={value!r} is not possible: {entry.says}" for entry, value in given if entry.refuses(value)
    ]
    if refused:
        raise InvalidConfig(". ".join(refused) + ".")
    for entry, value in given:
        if not entry.not_logged and value is not None:
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


def _plain(name: str, value: Any) -> Any:
    """Return the value as the option has it: None for an empty text, and the name of a torch type."""
    if name in _EMPTY_IS_NONE and not value:
        return None
    if name == "hf_token" and value is True:  # "the one that there is", as without the option
        return None
    is_torch_type = name == "dtype" and str(value).startswith("torch.")
    return str(value).removeprefix("torch.") if is_torch_type else value


def _renamed(options: Mapping[str, Any], entries: Mapping[str, ForeignOption]) -> dict[str, Any]:
    other = {name: put for name in options if name in entries and (put := entries[name].put)}
    values = {name: value for name, value in options.items() if name not in other}
    for name, put in other.items():
        if options[name] is not None:
            put(values, options[name])
    return values
