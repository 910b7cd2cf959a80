"""Tools of a request: their definitions for the prompt, and the form that a forced call has to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tilewise.errors import InvalidField, InvalidRequest
from tilewise.inputs.schema import unknown_keywords
from tilewise.inputs.tool_text import to_json
from tilewise.server.body import Given
from tilewise.server.served import ServedModel
from tilewise.structured_outputs import StructuredOutputsParams

_LONGEST_NAME = 256
_FOREIGN_SCHEMAS = ("input_schema", "inputSchema", "parameters_json_schema", "parametersJsonSchema")
Choice = Literal["none", "auto", "required", "named"]


class FunctionDefinition(Given):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Given):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class FunctionName(Given):
    name: str


class NamedTool(Given):
    type: Literal["function"]
    function: FunctionName


class FlatTool(Given):
    """A function as the Responses API writes it; some clients send it to chat, too."""

    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatToolName(Given):
    type: Literal["function"]
    name: str


class AllowedTools(Given):
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool | FlatToolName]


class AllowedToolsChoice(Given):
    """Only some of the tools: `allowed_tools` as the chat API has it, `mode` and `tools` as the Responses API does."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool | FlatToolName] | None = None


ToolChoice = Literal["none", "auto", "required"] | NamedTool | FlatToolName | AllowedToolsChoice


@dataclass(frozen=True)
class ToolUse:
    """The tools of a request, and whether and how its answer has to call them."""

    definitions: tuple[str, ...] = ()
    """JSON texts, as they stand in the prompt."""
    choice: Choice = "none"
    name: str | None = None
    """The function that has to be called, when the choice is named."""
    parallel: bool = True
    """True if an answer may hold more than one call."""
    structure: StructuredOutputsParams | None = None
    place: str = ""
    """The field of the body that has the schema of `structure`."""
    strict: Mapping[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    """The schemas of functions that are strict: their arguments are checked when a call is whole."""


def check_tool_types(tools: Any) -> None:
    """Raise InvalidField for a tool that is no function, or has its parameters under another API's name."""
    for number, tool in enumerate(tools if isinstance(tools, list) else ()):
        _check_schema_name(tool, f"tools[{number}]")
        kind = tool.get("type", "function") if isinstance(tool, dict) else "function"
        if kind != "function":
            raise InvalidField(
                f"tools[{number}].type",
                f"tools[{number}]: only tools of type function can be called here, got {kind!r:.80}: leave it out.",
            )


def _check_schema_name(tool: Any, where: str) -> None:
    """Raise InvalidField for parameters under another API's name, as Anthropic's or MCP's: a model would see none."""
    found = {where: tool, f"{where}.function": tool.get("function") if isinstance(tool, dict) else None}
    for place, function in found.items():
        for name in _FOREIGN_SCHEMAS if isinstance(function, dict) else ():
            if function.get(name) is not None:
                raise InvalidField(f"{place}.{name}", f"{place}: {name} is not taken, its name here is parameters.")


def _check_without_tools(tools: Sequence[Tool | FlatTool] | None, choice: ToolChoice | None) -> None:
    if tools is not None:
        raise InvalidField(
            "tools",
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.",
        )
    if choice not in (None, "none", "auto"):
        raise InvalidField("tool_choice", "When using `tool_choice`, `tools` must be set.")


def read_tools(
    tools: Sequence[Tool | FlatTool] | None, choice: ToolChoice | None, parallel: bool, served: ServedModel
) -> ToolUse:
    """Return a request's tools and what its choice asks of them. Raises InvalidField if they do not go together."""
    if not tools:
        _check_without_tools(tools, choice)
        return ToolUse()
    functions = _by_name(tools)
    if isinstance(choice, AllowedToolsChoice):
        functions, choice = _allowed(functions, choice)
    if choice == "none":
        return ToolUse()  # a model that is shown tools calls them
    use = ToolUse(
        tuple(function.text for function in functions.values()),
        parallel=parallel,
        strict={name: function.schema for name, function in functions.items() if function.definition.strict},
    )
    if choice == "required":
        return _required(use, functions)
    if isinstance(choice, (NamedTool, FlatToolName)):
        function = functions[_chosen(choice, functions)]
        structure = StructuredOutputsParams(json=function.schema)
        return replace(use, choice="named", name=function.definition.name, structure=structure, place=function.place)
    if not served.tools:
        raise InvalidField(
            "tool_choice",
            '"auto" tool choice requires --enable-auto-tool-choice to be set: start the server with it, send no tools, '
            "or choose none, required or one function.",
        )
    return replace(use, choice="auto")


@dataclass(frozen=True)
class _ToolFunction:
    definition: FunctionDefinition
    place: str
    """The field of the body that has its schema."""

    @property
    def schema(self) -> dict[str, Any]:
        return self.definition.parameters or {"type": "object", "properties": {}}

    @property
    def text(self) -> str:
        return to_json({"type": "function", "function": self.definition.model_dump(exclude_none=True)})


def _by_name(tools: Sequence[Tool | FlatTool]) -> dict[str, _ToolFunction]:
    """Return the functions by name. Raises InvalidField for a name that comes twice, is empty or too long.

    Names are any text: gateways write `server/tool`, and a model copies what stands in its prompt.
    """
    functions: dict[str, _ToolFunction] = {}
    for number, tool in enumerate(tools):
        if isinstance(tool, Tool):
            function = _ToolFunction(tool.function, f"tools[{number}].function.parameters")
        else:
            definition = FunctionDefinition(**tool.model_dump(exclude={"type"}))
            function = _ToolFunction(definition, f"tools[{number}].parameters")
        name = function.definition.name
        if not 0 < len(name) <= _LONGEST_NAME or name in functions:
            what = "comes twice" if name in functions else f"must have 1 to {_LONGEST_NAME} characters"
            raise InvalidField(
                f"tools[{number}].function.name", f"tools[{number}]: the function's name {what}, got {name!r:.80}."
            )
        functions[name] = function
    return functions


def _required(use: ToolUse, functions: Mapping[str, _ToolFunction]) -> ToolUse:
    """Return the use of tools of which at least one has to be called."""
    for function in functions.values():
        _check_keywords(function.schema, function.place)
    places = [function.place for function in functions.values()]
    schemas = {name: function.schema for name, function in functions.items()}
    structure = _calls_structure(schemas, use.parallel)
    return replace(use, choice="required", structure=structure, place=places[0] if len(places) == 1 else "tools")


def _check_keywords(schema: dict[str, Any], place: str) -> None:
    """Raise InvalidField for wrong keywords in a schema: in all schemas joined, none could say where they stand."""
    try:
        unknown_keywords(schema, place)
    except InvalidRequest as error:
        raise InvalidField(place, str(error)) from None


def _allowed(
    functions: dict[str, _ToolFunction], choice: AllowedToolsChoice
) -> tuple[dict[str, _ToolFunction], Literal["auto", "required"]]:
    """Return the functions that may be called, and the mode. The model is shown no others: it would call some."""
    allowed = choice.allowed_tools or AllowedTools(mode=choice.mode, tools=choice.tools or [])
    names = {_chosen(tool, functions) for tool in allowed.tools}
    if not names:
        raise InvalidField("tool_choice", "tool_choice of type allowed_tools needs tools, at least one.")
    return {name: function for name, function in functions.items() if name in names}, allowed.mode


def _chosen(choice: NamedTool | FlatToolName, functions: Mapping[str, Any]) -> str:
    name = choice.function.name if isinstance(choice, NamedTool) else choice.name
    if name not in functions:
        raise InvalidField("tool_choice", f"tool_choice names {name!r:.80}, tools has {', '.join(functions)}.")
    return name


def _calls_structure(functions: dict[str, dict[str, Any]], parallel: bool) -> StructuredOutputsParams:
    """Return the form of a list of calls. Each schema stands among the definitions, so that its own references hold."""
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
    """Return a schema that will stand at `root` in another one, with its own references led there.

    `#` is the root of the whole schema, which is the other one from then on.
    """
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
