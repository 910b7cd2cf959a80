"""The command line, `tilewise VERB`. A verb's file is loaded when the verb is wanted, heavy modules when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module

from tilewise import __version__
from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.verb import Verb, VerbGroup
from tilewise.errors import TilewiseError

_VERBS = {
    "ask": ("cli.ask", "ask a question about pictures or a video"),
    "chat": ("cli.chat", "talk with a server, at a terminal"),
    "generate": ("cli.ask", "continue a raw prompt"),
    "run-batch": ("cli.run_batch", "answer a file of requests"),
    "serve": ("cli.serve", "serve a model over HTTP, in OpenAI's form"),
    "encode-server": ("cli.serve", "encode pictures for servers elsewhere"),
    "deploy": ("deploy", "serve a model on a Ray cluster"),
    "ui": ("cli.ui", "talk with a model in the browser, and see what it sees"),
    "start": ("cli.services", "serve a model in the background"),
    "ps": ("cli.services", "list services"),
    "logs": ("cli.services", "show a service's log"),
    "stop": ("cli.services", "end a service"),
    "inspect": ("cli.inspect", "show what a model will be asked, without loading it"),
    "plan": ("cli.plan", "say whether a deployment fits, before anything is fetched"),
    "doctor": ("cli.doctor", "say whether this machine computes right, or a server asks right"),
    "quantize": ("cli.quantize", "write a checkpoint with int8, 4-bit or FP8 matrices"),
    "bench": ("cli.bench", "measure a server, or the engine"),
    "eval": ("cli.eval", "evaluate a model with lm_eval, spot-check it, compare two"),
    "demo": ("cli.ask", "ask the shipped model about the shipped pictures"),
    "tools": ("cli.tools", "tiny checkpoints for tests"),
    "archive": ("cli.services", "nothing: a checkpoint is served as it is"),
}
"""Verbs, each with its module, which has it in capitals, and its line in `tilewise --help`."""


def find_verb(name: str) -> Verb | VerbGroup:
    module = import_module(f"tilewise.{_VERBS[name][0]}")
    verb: Verb | VerbGroup = getattr(module, name.replace("-", "_").upper())
    return verb


TILEWISE = VerbGroup(
    usage="tilewise [-h] [--version] VERB ...",
    about="Ask InternVL models about pictures and videos, and serve them.",
    title="verbs",
    verbs={name: (line, partial(find_verb, name)) for name, (_, line) in _VERBS.items()},
    examples="tilewise VERB --help explains a verb. First try: tilewise ask PICTURE 'What is this?'",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code. Errors of Tilewise are printed as one line, not as a trace."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["version"], ["--version"], ["-v"]):
        print(__version__)
        return 0
    with suppress(AttributeError):  # a stream of another kind, which takes any character
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        _check_words(words)
        code = TILEWISE.call(words)
        sys.stdout.flush()
        return code
    except TilewiseError as error:
        from tilewise.console import without_credentials

        print(f"tilewise: {without_credentials(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, BadUsage) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
        _throw_output_away()
        return 141
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # rich ends the program where it meets one
            return 141
        raise
    except OSError as error:  # a full disk, above all
        _throw_output_away()
        print(f"tilewise: {error.filename or 'the output'}: {error.strerror}.", file=sys.stderr)
        return 1


def _check_words(words: Sequence[str]) -> None:
    """Raise BadUsage for a word that is not UTF-8, whose bytes Python keeps as halves of surrogate pairs."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(word).decode("utf-8", "backslashreplace")
            raise BadUsage(f"{shown:.80} is not UTF-8: set the terminal's encoding to UTF-8.") from None


def _throw_output_away() -> None:
    """Have the interpreter write to nowhere what it still holds, which it cannot write to where it should."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
