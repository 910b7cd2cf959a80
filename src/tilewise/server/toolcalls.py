"""Tools of a request: their definitions for the prompt, and the form that a forced call has to have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from tilewise.errors import InvalidField
from tilewise.inputs.tool_text import to_json
from tilewise.sampling_params import StructuredOutputsParams
from tilewise.server.protocol.chat import NamedTool, Tool
from tilewise.server.served import ServedModel

_NAME = re.compile(r"[\w.-]{1,64}")
Choice = Literal["none", "auto", "required", "named"]


@dataclass(frozen=True)
class ToolUse:
    """What a request wants of its tools."""

    definitions: tuple[str, ...] = ()
    """JSON texts, as they stand in the prompt."""
    choice: Choice = "none"
    name: str | None = None
    """The function that has to be called, when the choice is named."""
    parallel: bool = True
    """Whether an answer may hold more than one call."""
    structure: StructuredOutputsParams | None = None


def read_tools(
    tools: list[Tool] | None, choice: str | NamedTool | None, parallel: bool, served: ServedModel
) -> ToolUse:
    """Raises InvalidField for tools and choices that do not go together."""
    if tools is not None and not tools:
        raise InvalidField(
            "tools",
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.",
        )
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidField("tool_choice", "When using `tool_choice`, `tools` must be set.")
        return ToolUse()
    functions = _by_name(tools)
    definitions = tuple(to_json(tool.model_dump(exclude_none=True)) for tool in tools)
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in functions:
            raise InvalidField("tool_choice", f"tool_choice names {name!r:.80}, tools has {', '.join(functions)}.")
        return ToolUse(definitions, "named", name, parallel, StructuredOutputsParams(json=functions[name]))
    if choice == "required":
        return ToolUse(definitions, "required", None, parallel, _calls_structure(functions, parallel))
    if choice == "none":
        return ToolUse()  # as in vLLM: a model that is shown tools calls them
    if not served.tools:
        raise InvalidField(
            "tool_choice",
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set: '
            "set them, or choose none, required or one function.",
        )
    return ToolUse(definitions, "auto", None, parallel)


def _by_name(tools: list[Tool]) -> dict[str, dict[str, Any]]:
    """The schema of each function's arguments."""
    functions: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools):
        name = tool.function.name
        if not _NAME.fullmatch(name) or name in functions:
            what = "comes twice" if name in functions else "must be 1 to 64 letters, digits, '_', '.' or '-'"
            raise InvalidField(
                f"tools[{number}].function.name", f"tools[{number}]: the function's name {what}, got {name!r:.80}."
            )
        functions[name] = tool.function.parameters or {"type": "object", "properties": {}}
    return functions


def _calls_structure(functions: dict[str, dict[str, Any]], parallel: bool) -> StructuredOutputsParams:
    """A list of calls. Each schema stands among the definitions, so that its own references find their way."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{number}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, name in enumerate(functions)
    ]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not parallel:
        schema["maxItems"] = 1
    schema["$defs"] = {
        str(number): _moved(parameters, f"#/$defs/{number}") for number, parameters in enumerate(functions.values())
    }
    return StructuredOutputsParams(json=schema)


def _moved(schema: Any, root: str) -> Any:
    """A schema whose root is elsewhere: references to `#` follow."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
