"""`tilewise run-batch -i IN -o OUT [MODEL]`: a file of requests to a file of answers."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import MISSING, fields, replace
from functools import cache

from tilewise.cli.flags.flag import BadUsage, Flag, dashes, flags_of
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import Settings, make_settings, serve_flags, values_of_line
from tilewise.cli.flags.verb import Verb
from tilewise.environment import READ
from tilewise.errors import Unfinished
from tilewise.jobs.job import NO_CONNECTIONS, Job, is_connection_option
from tilewise.server.config import ServerConfig

TAKEN = {"output_tmp_dir": "results are written to the output as they come"}
"""Flags of vLLM's run-batch that change nothing -> the reason."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OF_CONNECTIONS = frozenset(option.name for option in fields(ServerConfig) if is_connection_option(option))
"""Options about keys and connections, of which a batch has neither."""


def run(line: CommandLine) -> int:
    job, settings = read_job(line)
    # Not above, as `tilewise run-batch --help` has no need of it.
    from tilewise.jobs.run import run as run_job

    settings.log("Batch")
    try:
        summary = run_job(job, settings.engine, settings.server, _SIGNALS)
    except Unfinished as error:
        print(f"tilewise: {error}", file=sys.stderr)
        return 1 if error.signal is None else 128 + error.signal
    print("\n".join(summary.text()))
    return 0


@cache
def batch_flags() -> tuple[Flag, ...]:
    """Return the flags of `serve`, of which those that do nothing in a batch are in no group, and vLLM's others."""
    taken = (Flag(name, str, "compatibility", why) for name, why in TAKEN.items())
    shared = (replace(flag, group="") if flag.name in _OF_CONNECTIONS else flag for flag in serve_flags())
    return (*shared, *taken)


def read_job(line: CommandLine) -> tuple[Job, Settings]:
    """Return the job of a command line. Everything is checked here, so that a mistake costs no loading time."""
    _check_files(line)
    job = line.take(Job)
    values, lines = values_of_line(line), []
    unread = {variable.name for variable in READ if variable.option in _OF_CONNECTIONS}
    environment = {name: value for name, value in os.environ.items() if name not in unread}
    for name in [name for name in values if name in _OF_CONNECTIONS or name in TAKEN]:
        lines.append(f"{dashes(name)}: {TAKEN.get(name, NO_CONNECTIONS)}")
        del values[name]
    settings = make_settings(values, environment)
    settings.lines.extend(lines)
    return job, settings


def _check_files(line: CommandLine) -> None:
    """Raise BadUsage where a file is not named."""
    for flag in flags_of(Job):
        if flag.default is MISSING and flag.name not in line.values:
            raise BadUsage(f"{flag.short} FILE ({flag.dashed}) is needed: the {flag.help.partition(';')[0]}.")


RUN_BATCH = Verb(
    usage="tilewise run-batch -i IN.jsonl -o OUT.jsonl [MODEL] [FLAG ...]",
    about="Answer a file of requests, one a line in the form of OpenAI's batches, and write a result a line. A run "
    "that was ended goes on by the same command. Flags are those of `tilewise serve`, but for those about who "
    "connects.",
    run=run,
    options=(Job,),
    shared=batch_flags,
    names_model=True,
    examples="""\
examples:
  tilewise run-batch -i questions.jsonl -o answers.jsonl OpenGVLab/InternVL3-8B
  tilewise run-batch -i questions.jsonl -o answers.jsonl ./InternVL3-1B --allowed-local-media-path /data/pictures
      lets lines name files below that folder, as file:///data/pictures/sign.jpg
  tilewise run-batch -i questions.jsonl -o answers.jsonl ./InternVL3-1B --retry-failed
      asks the lines that failed once more
  tilewise run-batch -i questions.jsonl -o answers.jsonl ./InternVL3-1B --ray 10.0.0.1:6379 --replica-cpus 8
a line of the input:
  {"custom_id": "a-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "demo", "messages": [...]}}
""",
)
