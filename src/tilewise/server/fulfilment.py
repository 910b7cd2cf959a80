"""Answers of which `strict: true` was asked, checked when they are whole for what could not be held to before."""

from __future__ import annotations

from typing import Any

from tilewise.inputs.schema_check import schema_faults
from tilewise.outputs.parts import split_parts
from tilewise.server.calls import ChatCall
from tilewise.server.respond import parts_rule
from tilewise.server.service import Service
from tilewise.types import CompletionOutput, RequestOutput


async def check_answers(call: ChatCall, output: RequestOutput, body: dict[str, Any], service: Service) -> None:
    """`check_strictness` for each choice of a whole answer's body."""
    for choice, answer in zip(body["choices"], output.outputs, strict=True):
        await check_strictness(call, answer, choice, service)


async def check_strictness(call: ChatCall, answer: CompletionOutput, choice: dict[str, Any], service: Service) -> None:
    """A choice of which `strict: true` was asked gets `schema_errors`, if it does not fulfil its schema.

    An answer that was cut short is not whole, as its finish_reason says.
    """
    if answer.finish_reason != "stop" or not (call.strict_schema or call.tools.strict):
        return
    parts = split_parts(answer.text, parts_rule(call))
    pairs = [(call.tools.strict[made.name], made.arguments) for made in parts.calls if made.name in call.tools.strict]
    if call.strict_schema is not None and not parts.calls:
        pairs.append((call.strict_schema, parts.content))
    if pairs:
        faults = [fault for found in await service.prepare(lambda: schema_faults(pairs)) for fault in found]
        if faults:
            choice["schema_errors"] = faults
