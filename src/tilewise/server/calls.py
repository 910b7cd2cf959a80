"""Calls: what a request body asks for, with nothing of HTTP or JSON left in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tilewise.inputs.media_io import MediaOptions
from tilewise.inputs.prepare import Side
from tilewise.inputs.templates import Ending
from tilewise.inputs.tool_text import ToolFormName
from tilewise.sampling_params import SamplingParams
from tilewise.server.toolcalls import ToolUse


@dataclass(frozen=True, kw_only=True)
class ReplyOptions:
    """The form in which a request's answers are given back."""

    id: str
    model: str
    created: int
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False
    """True if tokens of log-probabilities are written `token_id:N`."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The part of a call beside prompt and sampling: its priority, cache salt and token limit."""

    priority: int = 0
    cache_salt: str | None = None
    max_tokens: int | None = None
    """Most tokens of an answer, if the body names them: they have to fit into the context behind the prompt."""


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """A conversation, as `read_messages` and `Preparer.chat` take it."""

    messages: tuple[dict[str, Any], ...]
    thinking: bool | None = None
    """True if the model is asked to think first; None = as the template does."""
    tools: tuple[str, ...] = ()
    ending: Ending = "open"
    processor: dict[str, Any] = field(default_factory=dict)
    """`mm_processor_kwargs`."""
    media: MediaOptions = MediaOptions()
    """`media_io_kwargs`."""
    keep_last: int | None = None
    """`truncate_prompt_tokens`."""
    cut: Side = "left"
    """`truncation_side`: where a prompt that is cut loses tokens."""


@dataclass(frozen=True, kw_only=True)
class ChatCall:
    reply: ReplyOptions
    prompt: ChatPrompt
    sampling: SamplingParams
    routing: Routing
    form_field: str = "structured_outputs"
    """The field of the body that says what form the answer has; errors name it."""
    tools: ToolUse = ToolUse()
    strict_schema: dict[str, Any] | None = field(default=None, hash=False)
    """JSON schema that an answer is checked against when it is whole, because of `strict: true`."""
    tool_form: ToolFormName = "hermes"
    reasoning: bool = True
    """True if `<think>...</think>` is separated from the answer."""
    opened: bool = False
    """True if the prompt ends with `<think>`, so that the answer begins within the reasoning."""
    include_reasoning: bool = True
    """True if the reasoning that is separated is shown to the client."""
    echo: str = ""
    """Text before each answer."""


@dataclass(frozen=True, kw_only=True)
class CompletionCall:
    """A call for text completions: several prompts, each with `sampling.n` answers."""

    reply: ReplyOptions
    prompts: tuple[str | tuple[int, ...], ...]
    sampling: SamplingParams
    routing: Routing
    form_field: str = "structured_outputs"
    """The field of the body that says what form the answer has; errors name it."""
    start: bool = True
    """True if a text gets the tokenizer's start token."""
    keep_last: int | None = None
    cut: Side = "left"
    echo: bool = False
    prompt_only: bool = False
    """True for `max_tokens: 0`: only the prompt is answered, though the engine generates one token all the same."""
