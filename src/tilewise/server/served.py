"""ServedModel: what turning bodies into calls has to know of the model and of the server's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tilewise.errors import UnknownModel
from tilewise.inputs.tool_text import ToolFormName


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model under one or more names."""

    names: tuple[str, ...]
    """The first is the one that answers name."""
    root: str
    """Folder or hub id that it was loaded from."""
    created: int
    max_model_len: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Sampling options of requests that do not say (`sampling_defaults`)."""
    max_logprobs: int = 20
    max_answers: int = 64
    """Most answers to one prompt: each is a sequence of its own, which is held whole, pictures too, while it waits."""
    tools: bool = True
    """Whether calls are read out of answers, so that `tool_choice: auto` works."""
    tool_form: ToolFormName = "hermes"
    """How the model writes calls; `openai` is harmony, in which all parts of an answer are messages."""
    reasoning: bool = True
    """Whether `<think>...</think>` is told apart from the answer."""
    thinks: bool = True
    """Whether the model was trained to think."""
    starts: bool = False
    """Whether a start token stands before every prompt."""
    detail_levels: frozenset[str] = frozenset()
    """Values of a picture's `detail` that say how it is cut (`--detail-tiles`)."""
    thinking: bool | None = None
    """Whether requests that do not say are asked to think first; None = as the template does."""
    thinks_unasked: bool = False
    """Whether the template asks for thinking unless it is told not to."""
    opens_thinking: bool = False
    """Whether prompts that ask for thinking end with `<think>`, with which answers do not begin then."""
    priorities: bool = False
    """Whether the scheduler minds `priority`."""
    trust_request_chat_template: bool = False
    force_include_usage: bool = False
    tokens_as_ids: bool = False
    """How tokens are written beside log-probabilities, for requests that do not say."""
    strict_fields: bool = False
    """Whether unknown fields of a request are refused, instead of being named in its answer."""

    @property
    def name(self) -> str:
        return self.names[0]

    def resolve(self, name: str | None) -> str:
        """The name to answer under: the one asked for, or the first. Raises UnknownModel."""
        if name is None:
            return self.name
        if name not in self.names:
            raise UnknownModel(f"The model `{name[:200]}` does not exist. This server has {', '.join(self.names)}.")
        return name
