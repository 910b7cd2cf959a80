"""Whole answers held against their schemas by a validator that knows all keywords, in a process of its own.

A schema may ask for work without end (patterns that backtrack, references that multiply); there it ends a process that
nobody misses. Standard input is JSON `{"pairs": [[schema, text], ...], "seconds"}`; standard output one line of JSON
for each pair, a list of what is wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

from tilewise.inputs.sandbox import confine_this_process, run_confined
from tilewise.inputs.schema import prepare_schema

SECONDS = 2
_MOST_FAULTS = 5
_MOST_CHARACTERS = 300


def schema_faults(pairs: Sequence[tuple[Any, str]]) -> list[list[str]]:
    """Return what is wrong with each text by its schema, as sentences; an empty list if it fulfils it."""
    found: list[list[str]] = run_confined("tilewise.inputs.schema_check", {"pairs": pairs, "seconds": SECONDS})
    missing = [f"The answer could not be checked against its schema within {SECONDS} seconds."]
    return [*found, *[missing] * (len(pairs) - len(found))]


def main() -> None:
    import jsonschema  # type: ignore[import-untyped]
    from referencing import Registry

    job = json.load(sys.stdin)
    jsonschema.validate([1], {"items": {"type": "integer"}})  # reads what it has to, before no file can be opened
    confine_this_process(job["seconds"])
    for schema, text in job["pairs"]:
        complete = prepare_schema(schema, closed=False).complete
        kind = jsonschema.validators.validator_for(complete, default=jsonschema.Draft202012Validator)
        print(json.dumps(_faults(kind(complete, registry=Registry()), text)), flush=True)


def _faults(validator: Any, text: str) -> list[str]:
    try:
        found = islice(validator.iter_errors(json.loads(text)), _MOST_FAULTS)
        return [f"{error.json_path}: {error.message}"[:_MOST_CHARACTERS] for error in found]
    except Exception as error:  # whatever an untrusted schema makes the library raise is its result
        return [f"The answer could not be checked against its schema ({type(error).__name__})."]


if __name__ == "__main__":
    main()
