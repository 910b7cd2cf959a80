"""`tilewise doctor`: the machine, and which implementation computes each op and why."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from tilewise.cli.options import table


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "doctor",
        description="Show what Tilewise finds on this machine, and for each op which implementation computes it and "
        "why. Builds the kernels of the CPU where that has not happened yet.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.platforms import current_platform
    from tilewise.platforms.cuda import cuda_missing

    diagnosis = current_platform().diagnose()
    if (missing := cuda_missing()) is not None:
        diagnosis.facts["GPU"] = f"none: {missing}"
    if options.json:
        print(json.dumps(dataclasses.asdict(diagnosis), indent=2))
        return 0
    print(table(list(diagnosis.facts.items())))
    print()
    print(table([("OP", "BY", "WHY"), *((choice.op, choice.path, choice.why) for choice in diagnosis.choices)]))
    return 0
