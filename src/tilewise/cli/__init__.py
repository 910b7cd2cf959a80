"""The command line: `tilewise VERB`. One file a verb, loaded when that is wanted; what is heavy, when it runs."""

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

VERBS = (
    *("ask", "chat", "generate", "run-batch", "serve", "encode-server", "deploy", "start", "ps", "logs", "stop"),
    *("inspect", "plan", "doctor", "quantize", "bench", "eval", "demo", "tools", "archive"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors of Tilewise are one line, not a trace."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["version"], ["--version"], ["-v"]):
        print(__version__)
        return 0
    parser = build_parser(words[:1])
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


def build_parser(wanted: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all verbs, or of the one that is wanted: the files of the others are not loaded then."""
    parser = CommandParser(
        prog="tilewise",
        description="Ask InternVL models about pictures and videos, and serve them.",
        epilog="tilewise VERB --help explains a verb. First try: tilewise ask PICTURE 'What is this?'",
    )
    parser.add_argument("--version", "-v", action="store_true", help="show the version; so does `tilewise version`")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=VerbParser)
    for verb in set(VERBS).intersection(wanted) or VERBS:
        import_module(f"tilewise.cli.{verb.replace('-', '_')}").add_parser(verbs)
    return parser
