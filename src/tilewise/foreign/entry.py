"""ForeignOption: an option of vLLM that is none here, and its fate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

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

    def refuses(self, value: Any) -> bool:
        if self.accepts is None or _among(value, NOTHING):
            return False
        return not _among(value, self.accepts)

    @property
    def silent(self) -> bool:
        """True where the value asks for what is so anyway, or is explained elsewhere: then nothing is logged."""
        return self.fate in ("not yet", "never", "other name") or self.by_key


def _among(value: Any, values: tuple[Any, ...]) -> bool:
    """Return whether a value is one of these. True is no 1 here, and an array, whose equality is no bool, is none."""
    try:
        return any(isinstance(value, bool) is isinstance(item, bool) and value == item for item in values)
    except ValueError:
        return False


def taken(fate: Fate, says: str, hint: Any, *names: str) -> Iterator[ForeignOption]:
    """Yield options that are taken whatever they say, and change no answer."""
    for name in names:
        yield ForeignOption(name, hint, fate, says)


def refused(fate: Fate, says: str, hint: Any, **accepted: Any) -> Iterator[ForeignOption]:
    """Yield options that may only ask for what is so anyway: `name=value`, or a tuple of values."""
    for name, value in accepted.items():
        yield ForeignOption(name, hint, fate, says, value if isinstance(value, tuple) else (value,))


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
