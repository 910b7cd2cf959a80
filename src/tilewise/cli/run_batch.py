"""`tilewise run-batch -i IN -o OUT [MODEL]`: a file of requests to a file of answers."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

from tilewise.cli.flags.flag import BadUsage, Flag, dashes, flags_of
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import Settings, make_settings, serve_flags, values_of_line
from tilewise.cli.flags.verb import Verb
from tilewise.environment import READ
from tilewise.errors import Unfinished
from tilewise.jobs.job import NO_CONNECTIONS, Job, is_connection_option
from tilewise.option import option
from tilewise.server.config import ServerConfig


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The options of a job."""

    GROUP: ClassVar = "batch"
    input_file: Path | None = option(None, "file with a request a line", short="-i")
    output_file: Path | None = option(
        None, "file with a result a line; if it is there, what it lacks is asked", short="-o"
    )
    keep_order: bool = option(True, "results in the order of the input; else as they come")
    max_in_flight: int | None = option(
        None,
        "lines that are asked at once (default: max_num_seqs of each replica and a quarter more)",
        alias="max_inflight",
    )
    retries: int = option(Job.retries, "how often a line is asked again when the engine died or failed")
    retry_failed: bool = option(False, "ask lines again whose result is a failure")
    enable_metrics: bool = option(False, "let Prometheus read metrics of the run, at --url and --port")
    url: str = option(Job.url, "address of the metrics, with --enable-metrics")
    port: int = option(Job.port, "port of the metrics, with --enable-metrics")
    ray: str | None = option(
        None,
        "HOST:PORT of a Ray cluster's head, whose nodes answer; auto = RAY_ADDRESS, or the cluster of this machine "
        "(docs/ray.md)",
    )
    replicas: int | None = option(None, "engines of the cluster, with --ray (default: one a node)")
    replica_cpus: float = option(Job.replica_cpus, "CPUs of each, with --ray, which are its threads")

    def check(self) -> None:
        """Raise BadUsage where a file is not named."""
        for flag in tuple(flags_of(BatchOptions))[:2]:
            if not str(getattr(self, flag.name) or ""):
                raise BadUsage(f"{flag.short} FILE ({flag.dashed}) is needed: the {flag.help.partition(';')[0]}.")


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
    options = line.take(BatchOptions)
    options.check()
    values, lines = values_of_line(line), []
    unread = {variable.name for variable in READ if variable.option in _OF_CONNECTIONS}
    environment = {name: value for name, value in os.environ.items() if name not in unread}
    for name in [name for name in values if name in _OF_CONNECTIONS or name in TAKEN]:
        lines.append(f"{dashes(name)}: {TAKEN.get(name, NO_CONNECTIONS)}")
        del values[name]
    settings = make_settings(values, environment)
    settings.lines.extend(lines)
    return Job(**vars(options)), settings


RUN_BATCH = Verb(
    usage="tilewise run-batch -i IN.jsonl -o OUT.jsonl [MODEL] [FLAG ...]",
    about="Answer a file of requests, one a line in the form of OpenAI's batches, and write a result a line. A run "
    "that was ended goes on by the same command. Flags are those of `tilewise serve`, but for those about who "
    "connects.",
    run=run,
    options=(BatchOptions,),
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
