"""`python -m tilewise.evals ...` is lm_eval's own command line, which knows our models and tasks as well.

lm_eval takes one folder as `--include_path`. Unless the caller gives one, it is the folder of our tasks.
"""

from __future__ import annotations

import sys

from tilewise.evals import TASKS
from tilewise.host import require_extra


def main() -> None:
    require_extra("lm_eval", "eval", "Evaluation")
    from lm_eval.__main__ import cli_evaluate

    lists_or_checks = sys.argv[1:2] in (["ls"], ["validate"])
    asked = [argument.partition("=")[0] for argument in sys.argv[1:]]
    if asked and not lists_or_checks and "--include_path" not in asked and not {"-h", "--help"} & set(asked):
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()


if __name__ == "__main__":
    main()
