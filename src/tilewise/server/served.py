"""ServedModel: the facts about the model and the server's options that are needed to turn bodies into calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tilewise.errors import UnknownModel
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.tool_text import ToolFormName
from tilewise.server.config import ServerConfig


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The model that a server has, under one or more names, with defaults and rules for its requests."""

    config: ServerConfig
    names: tuple[str, ...]
    """Names that requests may give as `model`; without one, a request means the first."""
    root: str
    """Folder or hub id that the model was loaded from."""
    created: int
    max_model_len: int
    tiling: Tiling = Tiling()
    tokens_per_tile: int = 256
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Sampling options of requests that do not set them (`default_sampling`)."""
    max_answers: int = 64
    """Most answers to one prompt: each is a sequence of its own, which is held whole, pictures too, while it waits."""
    tools: bool = True
    """True if calls are read out of answers, so that `tool_choice: auto` works."""
    tool_form: ToolFormName = "hermes"
    """Form in which the model writes calls; `openai` is harmony, in which all parts of an answer are messages."""
    reasoning: bool = True
    """True if `<think>...</think>` is separated from the answer."""
    thinks: bool = True
    """True if the model was trained to think."""
    starts: bool = False
    """True if a start token stands before every prompt."""
    thinking: bool | None = None
    """True if the model is asked to think first where a request does not say; None = as the template does."""
    thinks_unasked: bool = False
    """True if the template asks for thinking unless it is told not to."""
    opens_thinking: bool = False
    """True if prompts that ask for thinking end with `<think>`, so that answers do not begin with it."""
    priorities: bool = False
    """True if the scheduler orders requests by `priority`."""

    @property
    def name(self) -> str:
        return self.names[0]

    def resolve(self, name: str | None) -> str:
        """Return the name to answer under: the one asked for, or the first. Raises UnknownModel."""
        if name is None:
            return self.name
        if name not in self.names:
            raise UnknownModel(f"The model `{name[:200]}` does not exist. This server has {', '.join(self.names)}.")
        return name
