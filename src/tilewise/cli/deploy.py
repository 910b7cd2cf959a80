"""`tilewise deploy [MODEL]`: servers on a Ray cluster, behind one address."""

from __future__ import annotations

import argparse
import os
from typing import Any

from tilewise.cli.flags.help import asked_for_help, help_page
from tilewise.cli.flags.table import serve_flags
from tilewise.cli.serve import log_settings
from tilewise.cli.start import default_name
from tilewise.deploy import FLAGS, deploy, read_order, stop

USAGE = "tilewise deploy [MODEL] [--replicas N | --autoscale MIN:MAX] [--name NAME] [--detach] [FLAG ...]"
ABOUT = (
    "Serve a model on the nodes of a Ray cluster, by Ray Serve: as many servers as you say, behind one address, each "
    "replaced when it fails. Flags are those of `tilewise serve`; see docs/ray.md."
)
EXAMPLES = """\
examples:
  tilewise deploy OpenGVLab/InternVL3-8B --replicas 2 --replica-cpus 16
  tilewise deploy ./InternVL3-1B --autoscale 1:4 --name small --detach
  tilewise deploy --stop small
"""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("deploy", add_help=False)
    parser.takes_all_words = True
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if (topic := asked_for_help(options.words)) is not None:
        print(help_page(USAGE, ABOUT, EXAMPLES, [*FLAGS, *serve_flags()], topic))
        return 0
    address, stopped, wanted = read_order(options.words)
    from tilewise.console import set_up_logs

    set_up_logs("Deploy", os.environ.get("VLLM_LOGGING_LEVEL", "INFO"))
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    if wanted is None:
        return stop(stopped or "")
    log_settings(wanted.settings)
    return deploy(wanted, wanted.name or default_name(wanted.settings))
