"""The words in which tools stand in a prompt: the Hermes form, with which Qwen's language models were trained.

The strings are those of the Jinja templates of Qwen2.5 and Qwen3, to the character. `{}` stands for JSON texts or
for what a tool gave back.
"""

from __future__ import annotations

import json
from typing import Any

from tilewise.errors import InvalidRequest

MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SECTION = """\
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
CALL = "<tool_call>\n{}\n</tool_call>"
RESULT = "<tool_response>\n{}\n</tool_response>"


def to_json(value: Any) -> str:
    """JSON as the training's templates write it: blanks behind commas and colons, no escapes."""
    return json.dumps(value, ensure_ascii=False)


def read_calls(calls: Any, where: str) -> tuple[str, ...]:
    """An assistant message's `tool_calls`, each as the model wrote it. Raises InvalidRequest, naming `where`."""
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where}: tool_calls must be a list, got {type(calls).__name__}.")
    return tuple(_call_text(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls))


def _call_text(call: Any, where: str) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where}: it needs a function with a name and arguments, got {call!r:.80}.")
    arguments = function.get("arguments")
    if arguments in (None, ""):
        arguments = "{}"
    text = arguments if isinstance(arguments, str) else to_json(arguments)
    if not _is_object(text):
        raise InvalidRequest(f"{where}: function.arguments must be the text of a JSON object, got {arguments!r:.80}.")
    return f'{{"name": {to_json(name)}, "arguments": {text}}}'


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
