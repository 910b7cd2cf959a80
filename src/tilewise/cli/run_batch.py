"""`tilewise run-batch -i IN -o OUT [MODEL]`: a file of requests to a file of answers."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilewise.cli.flags.flag import BadUsage, Flag
from tilewise.cli.flags.help import asked_for_help, help_page
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.table import Settings, make_settings, serve_flags, values_of_line
from tilewise.cli.flags.variables import OPTIONS
from tilewise.cli.serve import log_settings
from tilewise.errors import Unfinished
from tilewise.jobs.job import NO_CONNECTIONS, Job, is_connection_option
from tilewise.server.config import ServerConfig

USAGE = "tilewise run-batch -i IN.jsonl -o OUT.jsonl [MODEL] [FLAG ...]"
ABOUT = (
    "Answer a file of requests, one a line in the form of OpenAI's batches, and write a result a line. A run that was "
    "ended goes on by the same command. Flags are those of `tilewise serve`, but for those about who connects."
)
EXAMPLES = """\
examples:
  tilewise run-batch -i questions.jsonl -o answers.jsonl OpenGVLab/InternVL3-8B
  tilewise run-batch -i questions.jsonl -o answers.jsonl ./InternVL3-1B --allowed-local-media-path /data/pictures
      lets lines name files below that folder, as file:///data/pictures/sign.jpg
  tilewise run-batch -i questions.jsonl -o answers.jsonl ./InternVL3-1B --retry-failed
      asks the lines that failed once more
  tilewise run-batch -i questions.jsonl -o answers.jsonl ./InternVL3-1B --ray 10.0.0.1:6379 --replica-cpus 8
a line of the input:
  {"custom_id": "a-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "demo", "messages": [...]}}
"""
FLAGS = (
    Flag("input_file", str, "batch", "file with a request a line", short="-i"),
    Flag("output_file", str, "batch", "file with a result a line; if it is there, what it lacks is asked", short="-o"),
    Flag("keep_order", bool, "batch", "results in the order of the input; else as they come", True),
    Flag(
        "max_in_flight",
        int | None,
        "batch",
        "lines that are asked at once (default: max_num_seqs of each replica and a quarter more)",
        alias="max_inflight",
    ),
    Flag("retries", int, "batch", "how often a line is asked again when the engine died or failed", Job.retries),
    Flag("retry_failed", bool, "batch", "ask lines again whose result is a failure", False),
    Flag("enable_metrics", bool, "batch", "let Prometheus read metrics of the run, at --url and --port", False),
    Flag("url", str, "batch", "address of the metrics, with --enable-metrics", Job.url),
    Flag("port", int, "batch", "port of the metrics, with --enable-metrics", Job.port),
    Flag(
        "ray",
        str | None,
        "batch",
        "HOST:PORT of a Ray cluster's head, whose nodes answer; auto = RAY_ADDRESS, or "
        "the cluster of this machine (docs/ray.md)",
    ),
    Flag("replicas", int | None, "batch", "engines of the cluster, with --ray (default: one a node)"),
    Flag("replica_cpus", float, "batch", "CPUs of each, with --ray, which are its threads", Job.replica_cpus),
)
TAKEN = {"output_tmp_dir": "results are written to the output as they come"}
"""Flags of vLLM's run-batch that change nothing -> the reason."""
_OTHERS = tuple(Flag(name, str, "compatibility", why) for name, why in TAKEN.items())
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("run-batch", add_help=False)
    parser.takes_all_words = True
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if (topic := asked_for_help(options.words)) is not None:
        print(help_page(USAGE, ABOUT, EXAMPLES, [*FLAGS, *batch_flags()], topic))
        return 0
    job, settings = read_order(options.words)
    # Not above, as `tilewise --help` has no need of them.
    from tilewise.console import set_up_logs
    from tilewise.jobs.run import run as run_job

    set_up_logs("Batch", os.environ.get("VLLM_LOGGING_LEVEL", "INFO"))
    log_settings(settings)
    try:
        summary = run_job(job, settings.engine, settings.server, _SIGNALS)
    except Unfinished as error:
        print(f"tilewise: {error}", file=sys.stderr)
        return 1 if error.signal is None else 128 + error.signal
    print("\n".join(summary.text()))
    return 0


def batch_flags() -> list[Flag]:
    """Return the flags of `serve` that do something in a batch."""
    nobody = {field.name for field in dataclasses.fields(ServerConfig) if is_connection_option(field)}
    return [flag for flag in serve_flags() if flag.name not in nobody]


def read_order(words: Sequence[str]) -> tuple[Job, Settings]:
    """Read the command line. Everything is checked here, so that a mistake costs no loading time."""
    named = {flag.name for flag in (*FLAGS, *_OTHERS)}
    others = [flag for flag in serve_flags() if flag.name not in named]
    line = CommandLine.read(words, [*FLAGS, *_OTHERS, *others])
    own = {flag.name: line.values.pop(flag.name) for flag in FLAGS if flag.name in line.values}
    for flag in FLAGS[:2]:
        if not own.get(flag.name):
            raise BadUsage(f"{flag.short} FILE ({flag.dashed}) is needed: the {flag.help.partition(';')[0]}.")
        own[flag.name] = Path(own[flag.name])
    # Flags and variables about keys and connections are left out: a batch has neither.
    values, lines = values_of_line(line), []
    nobody = {field.name for field in dataclasses.fields(ServerConfig) if is_connection_option(field)}
    environment = {name: value for name, value in os.environ.items() if OPTIONS.get(name) not in nobody}
    for name in [name for name in values if name in nobody or name in TAKEN]:
        lines.append(f"--{name.replace('_', '-')}: {TAKEN.get(name, NO_CONNECTIONS)}")
        del values[name]
    settings = make_settings(values, environment)
    settings.lines.extend(lines)
    return Job(**own), settings
