"""The command line, `tilewise VERB`. A verb's file is loaded when the verb is wanted, heavy modules when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from tilewise import __version__
from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.options import CommandParser, VerbParser, dashed
from tilewise.errors import TilewiseError

VERBS = {
    "ask": "ask a question about pictures or a video",
    "chat": "talk with a server, at a terminal",
    "generate": "continue a raw prompt",
    "run-batch": "answer a file of requests",
    "serve": "serve a model over HTTP, in OpenAI's form",
    "encode-server": "encode pictures for servers elsewhere",
    "deploy": "serve a model on a Ray cluster",
    "ui": "talk with a model in the browser",
    "start": "serve a model in the background",
    "ps": "list services",
    "logs": "show a service's log",
    "stop": "end a service",
    "inspect": "show what a model will be asked, without loading it",
    "plan": "say whether a deployment fits, before anything is fetched",
    "doctor": "say what this machine is, and how it will compute",
    "quantize": "write a checkpoint with int8, 4-bit or FP8 matrices",
    "bench": "measure a server, or the engine",
    "eval": "evaluate a model with lm_eval, spot-check it, compare two",
    "demo": "ask the shipped model about the shipped pictures",
    "tools": "tiny checkpoints for tests",
    "archive": "nothing: a checkpoint is served as it is",
}
"""Verbs, with their lines in `tilewise --help`."""
_TOGETHER = {**dict.fromkeys(("ps", "logs", "stop", "archive"), "services"), "generate": "ask"}
"""Verbs that share a file with others, and have `add_VERB` there in place of `add_parser`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code. Errors of Tilewise are printed as one line, not as a trace."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["version"], ["--version"], ["-v"]):
        print(__version__)
        return 0
    if words[:1] == ["ui"] and words[1:] and not words[1].startswith("-"):
        words = ["serve", words[1], "--ui", *words[2:]]  # the chat over a server of its own
    parser = build_parser(words)
    options = parser.parse_args([dashed(argument) for argument in words])
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except TilewiseError as error:
        print(f"tilewise: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadUsage) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def build_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser of the verb that a command line begins with; None = of all verbs.

    Where the words begin with no verb, they ask for help at most, for which no verb's file is loaded.
    """
    parser = CommandParser(
        prog="tilewise",
        description="Ask InternVL models about pictures and videos, and serve them.",
        epilog="tilewise VERB --help explains a verb. First try: tilewise ask PICTURE 'What is this?'",
    )
    parser.add_argument("--version", "-v", action="store_true", help="show the version; so does `tilewise version`")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=VerbParser)
    wanted = VERBS if words is None else VERBS.keys() & words[:1]
    for verb, line in VERBS.items():
        if verb in wanted:
            name = verb.replace("-", "_")
            module = import_module(f"tilewise.cli.{_TOGETHER.get(verb, name)}")
            getattr(module, f"add_{name}" if verb in _TOGETHER else "add_parser")(verbs)
        elif not wanted:
            verbs.add_parser(verb, help=line)
    return parser
