"""`tilewise serve [MODEL]`: OpenAI's API over HTTP, with vLLM's flags."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from tilewise.cli.flags.help import asked_for_help, help_page
from tilewise.cli.flags.table import Settings, read_settings, serve_flags

USAGE = "tilewise serve [MODEL] [FLAG ...]"
ABOUT = "Serve a model over HTTP, in OpenAI's form. Without MODEL, the demo model. The flags are vLLM's."
EXAMPLES = """\
examples:
  tilewise serve
      the demo model at http://127.0.0.1:8000/v1
  tilewise serve OpenGVLab/InternVL3-8B --max-model-len 16K --limit-mm-per-prompt '{"image": 4}'
  tilewise serve ./InternVL3-1B --host 127.0.0.1 --port 2002 --served-model-name internvl3 --api-key SECRET
  tilewise serve ./InternVL3-1B --allowed-local-media-path /data/pictures
      lets requests name files below that folder, as file:///data/pictures/sign.jpg
  tilewise serve --config server.yml --port 8001
      flags from a YAML file (port: 8000); the command line wins
"""

logger = logging.getLogger("tilewise")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("serve", add_help=False)
    parser.takes_all_words = True
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if (topic := asked_for_help(options.words)) is not None:
        print(help_page(USAGE, ABOUT, EXAMPLES, serve_flags(), topic))
        return 0
    settings = read_settings(options.words, os.environ)
    # Not above: the logs are the server's, and `tilewise --help` has no need of them.
    from tilewise.console import set_up_logs

    set_up_logs("APIServer", os.environ.get("VLLM_LOGGING_LEVEL", "INFO"))
    log_settings(settings)
    import tilewise.server

    return tilewise.server.run(settings.engine, settings.server)


def log_settings(settings: Settings) -> None:
    logger.info("non-default args: %s", settings.given)
    for line in settings.lines:
        logger.info("%s", line)
    for line in settings.warnings:
        logger.warning("%s", line)
