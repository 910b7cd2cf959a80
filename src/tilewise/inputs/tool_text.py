"""The words in which tools stand in a prompt: a form for each family of language models that was trained with one.

Hermes: the strings of the Jinja templates of Qwen2.5 and Qwen3, to the character. InternLM2: its chat format, with
tools and results in turns of their own (InternLM/InternLM, `chat/chat_format.md`). Harmony: GPT-OSS's (openai/harmony,
`docs/format.md`), in which functions are types of TypeScript. `{}` stands for texts of the caller or of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tilewise.errors import InvalidField

MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_SECTION = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""
_CALL = "<tool_call>\n{}\n</tool_call>"
_RESULT = "<tool_response>\n{}\n</tool_response>"
_ACTION = "<|action_start|><|plugin|>\n{}<|action_end|>"
_DEVELOPER = "<|start|>developer<|message|># Tools\n\n## functions\n\n{}<|end|>"
_HARMONY_PREAMBLE = "<|start|>assistant<|channel|>commentary<|message|>{}<|end|>"
_HARMONY_CALL = "<|start|>assistant to=functions.{}<|channel|>commentary json<|message|>{}<|call|>"
_HARMONY_RESULT = "<|start|>functions.{} to=assistant<|channel|>commentary<|message|>{}<|end|>"
ToolFormName = Literal["hermes", "internlm", "openai"]


@dataclass(frozen=True, slots=True)
class ToolForm:
    """The form in which one family of models was shown tools. Names are those of vLLM's parsers."""

    name: ToolFormName
    section: str
    """Form of all definitions: the end of the system's text; or a turn of their own, if `apart`."""
    call: str
    result: str
    apart: bool = False
    """True = definitions and results are turns, and not parts of turns."""
    preamble: str = ""
    """Form of what the assistant says before a call, where that is a message of its own, as the calls are then."""

    def system_text(self, text: str) -> str:
        if self.name != "openai":
            return text
        channels = text.replace("# Valid channels: final.", "# Valid channels: analysis, commentary, final.")
        return f"{channels}\nCalls to these tools must go to the commentary channel: 'functions'."

    def definitions(self, tools: Sequence[str]) -> str:
        """Return the definitions of functions, each a JSON text as OpenAI has it, as they stand in the section."""
        if self.name == "hermes":
            return "\n".join(tools)
        functions = [json.loads(tool).get("function", {}) for tool in tools]
        return to_json(functions) if self.name == "internlm" else namespace_of(functions)

    def call_texts(self, call: str) -> tuple[str, ...]:
        """Return the texts to fill the form of a call: `call` is `{"name": ..., "arguments": {...}}`."""
        if self.name == "hermes":
            return (call,)
        made = json.loads(call)
        if self.name == "internlm":
            return (to_json({"name": made["name"], "parameters": made["arguments"]}),)
        return made["name"], to_json(made["arguments"])

    def named_by(self, call: str | None) -> tuple[str, ...]:
        """Return the texts to fill the form of a result before its own: `call` is the one that it answers, if known."""
        if self.name == "openai":
            return (json.loads(call)["name"] if call else "unknown",)
        return ()


TOOL_FORMS: dict[ToolFormName, ToolForm] = {
    "hermes": ToolForm("hermes", _SECTION, _CALL, _RESULT),
    "internlm": ToolForm(
        "internlm",
        "<|im_start|>system name=<|plugin|>\n{}<|im_end|>\n",
        _ACTION,
        "<|im_start|>environment name=<|plugin|>\n{}<|im_end|>\n",
        apart=True,
    ),
    "openai": ToolForm("openai", _DEVELOPER, _HARMONY_CALL, _HARMONY_RESULT, apart=True, preamble=_HARMONY_PREAMBLE),
}


def to_json(value: Any) -> str:
    """Return JSON as the training's templates write it: blanks behind commas and colons, no escapes."""
    return json.dumps(value, ensure_ascii=False)


def read_calls(calls: Any, where: str) -> tuple[str, ...]:
    """Return an assistant message's `tool_calls`, each as the model wrote it. Raises InvalidField, naming `where`."""
    if not isinstance(calls, list):
        raise InvalidField(f"{where}.tool_calls", f"{where}: tool_calls must be a list, got {type(calls).__name__}.")
    return tuple(_call_text(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls))


def _call_text(call: Any, where: str) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise InvalidField(where, f"{where}: it needs a function with a name and arguments, got {call!r:.80}.")
    arguments = function.get("arguments")
    if arguments in (None, ""):
        arguments = "{}"
    text = arguments if isinstance(arguments, str) else to_json(arguments)
    if not _is_object(text):
        raise InvalidField(
            where, f"{where}: function.arguments must be the text of a JSON object, got {arguments!r:.80}."
        )
    return f'{{"name": {to_json(name)}, "arguments": {text}}}'


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_NAMES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}
_DEEPEST = 20


def namespace_of(functions: Sequence[Mapping[str, Any]]) -> str:
    """Return the namespace `functions`. What TypeScript has no word for becomes `any`."""
    types = "".join(f"{_function(function)}\n\n" for function in functions)
    return f"namespace functions {{\n\n{types}}} // namespace functions"


def _function(function: Mapping[str, Any]) -> str:
    comment = _comment(function.get("description"))
    parameters = function.get("parameters")
    takes = f"_: {_type(parameters)}" if isinstance(parameters, dict) and parameters.get("properties") else ""
    return f"{comment}type {function.get('name')} = ({takes}) => any;"


def _comment(text: Any) -> str:
    return "".join(f"// {line}\n" for line in text.splitlines()) if isinstance(text, str) else ""


def _type(schema: Any, depth: int = 0) -> str:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return "any"
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return " | ".join(_type(branch, depth + 1) for branch in schema[key])
    kind = schema.get("type")
    if isinstance(kind, list):
        # Items and properties are gone through once each, however often a list of types asks for them: twenty times at
        # each of ten levels would never end.
        named = [one for one in kind if isinstance(one, str)]
        if "properties" in schema:
            named = [one if one == "array" else "object" for one in named]
        names = dict.fromkeys(named)
        return " | ".join(_type({**schema, "type": one}, depth + 1) for one in names) or "any"
    if kind == "array":
        inner = _type(schema.get("items"), depth + 1)
        return f"({inner})[]" if " | " in inner else f"{inner}[]"
    if kind == "object" or "properties" in schema:
        return _object(schema, depth)
    return _NAMES.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: Mapping[str, Any], depth: int) -> str:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return "object"
    return "{\n" + "".join(_properties(properties, schema.get("required"), depth)) + "}"


def _properties(properties: Mapping[str, Any], required: Any, depth: int) -> Iterator[str]:
    needed = required if isinstance(required, list) else ()
    for name, schema in properties.items():
        says = schema if isinstance(schema, dict) else {}
        default = says.get("default")
        note = "" if default is None else f" // default: {_default(default)}"
        mark = "" if name in needed else "?"
        yield f"{_comment(says.get('description'))}{name}{mark}: {_type(schema, depth + 1)},{note}\n"


def _default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
