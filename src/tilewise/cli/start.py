"""`tilewise start [MODEL]`: `tilewise serve` in the background, by a name."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilewise.cli.flags import grps
from tilewise.cli.flags.flag import BadUsage, Flag
from tilewise.cli.flags.help import asked_for_help, help_page
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.table import Settings, make_settings, serve_flags, values_of_line
from tilewise.errors import InvalidConfig
from tilewise.server.config import ServerConfig
from tilewise.services.launch import ServiceSpec, launch
from tilewise.services.record import ServiceFolder

USAGE = "tilewise start [MODEL | server.yml] [--name NAME] [--timeout SECONDS] [FLAG ...]"
ABOUT = "Serve a model in the background, and return when it answers. All flags of `tilewise serve` are taken."
EXAMPLES = """\
examples:
  tilewise start OpenGVLab/InternVL3-8B --name internvl3 --port 2002
  tilewise start server.yml
      flags from a YAML file, or grps's keys: interface.port, max_concurrency ...
  tilewise ps; tilewise logs -f internvl3; tilewise stop internvl3
"""
TIMEOUT = 600.0
FLAGS = (
    Flag("name", str | None, "service", "name of the service (default: that of the model)"),
    Flag("timeout", float, "service", "seconds to wait for an answer; then the service is stopped", TIMEOUT),
    Flag("server_conf", str | None, "service", "grps's server.yml"),
    Flag("inference_conf", str | None, "service", "grps's inference.yml; the model is the one of its tokenizer_path"),
    Flag("mpi_np", int, "service", "as --tensor-parallel-size"),
    Flag("no_logging", bool, "service", "refused: the log is how a service that fails is understood"),
)


@dataclass(frozen=True)
class StartLine:
    """A command line of `start` that was read: `values` are those of the flags of `serve`, `lines` are to be shown."""

    name: str | None
    timeout: float
    values: dict[str, Any]
    lines: list[str]


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("start", add_help=False)
    parser.takes_all_words = True
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if (topic := asked_for_help(options.words)) is not None:
        print(help_page(USAGE, ABOUT, EXAMPLES, [*FLAGS, *serve_flags()], topic))
        return 0
    return start(options.words, [sys.executable, "-m", "tilewise", "serve", "--config"])


def start(words: Sequence[str], command: Sequence[str]) -> int:
    """Start a service, and return the exit code. `command` is given the file of flags as its last word."""
    order = read_order(words)
    settings = make_settings(order.values, os.environ)
    for line in (*order.lines, *settings.lines, *settings.warnings):
        _tell(line)
    name = order.name or default_name(settings)
    check_address(settings.server)
    folder = ServiceFolder.of(os.environ)
    wanted = ServiceSpec(
        name,
        [*command, str(folder.file(name, "yml"))],
        settings.engine.model,
        settings.server.url,
        settings.server.uds,
        as_yaml(order.values),
    )
    _tell(f"Starting {name}; its log: {folder.file(name, 'log')}")
    service = launch(folder, wanted, order.timeout, _tell)
    print(f"{name} answers at {service.where} (pid {service.pid}). `tilewise logs {name}`, `tilewise stop {name}`.")
    return 0


def read_order(words: Sequence[str]) -> StartLine:
    """Read the command line. It wins over the file of --config, and that over other YAML files, grps's among them."""
    line = CommandLine.read(words, [*FLAGS, *serve_flags()])
    own = {flag.name: line.values.pop(flag.name) for flag in FLAGS if flag.name in line.values}
    if own.get("no_logging"):
        raise BadUsage("--no-logging: a service is never without its log, which is how a failure is understood.")
    archived = _take(line, (".mar",))
    found = grps.GrpsFlags(dict(grps.DEFAULTS) if archived else {})
    files = [*_take(line, (".yml", ".yaml")), own.get("server_conf"), own.get("inference_conf")]
    for path in filter(None, files):
        imported = grps.read_server_yml(path, serve_flags())
        found.values |= imported.values
        found.lines += imported.lines
    found.lines += [f"{path}: no archive is needed, the checkpoint is read as it is." for path in archived]
    if "mpi_np" in own:
        found.values["tensor_parallel_size"] = own["mpi_np"]
    name = own.get("name") or (grps.NAME if archived else None)
    return StartLine(name, _timeout(own), found.values | values_of_line(line), found.lines)


def _take(line: CommandLine, endings: tuple[str, ...]) -> list[str]:
    """Take out of a line the words that end so, which are files and no model, and return them."""
    taken = [word for word in line.positional if word.endswith(endings)]
    line.positional[:] = [word for word in line.positional if word not in taken]
    return taken


def _timeout(own: dict[str, Any]) -> float:
    timeout = float(own.get("timeout", TIMEOUT))
    if not 0 < timeout < float("inf"):
        raise BadUsage(f"--timeout must be above 0, in seconds, got {timeout:g}.")
    return timeout


def default_name(settings: Settings) -> str:
    """Return the model's name, in letters that a file's name may have."""
    name = next(iter(settings.server.served_model_name), settings.engine.model.rstrip("/"))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition("/")[2]).lstrip("._-")[:64] or "model"


def check_address(server: ServerConfig) -> None:
    """Raise InvalidConfig unless a service can listen there, and can be asked how it is."""
    if server.ssl_cert_reqs == 2:
        raise InvalidConfig(
            "ssl_cert_reqs=2: a server that wants certificates of clients cannot be asked how it is. Use "
            "`tilewise serve` under a supervisor of your own."
        )
    if server.uds is not None:
        return
    if server.port == 0:
        raise InvalidConfig("port=0: a service needs a port that is known. Name one that is free.")
    family = socket.AF_INET6 if ":" in (server.host or "") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host or "0.0.0.0", server.port))
        except OSError as error:
            raise InvalidConfig(
                f"Cannot listen at {server.host or 'all interfaces'}, port {server.port}: {error.strerror}. "
                "`tilewise ps` shows services; give another --port."
            ) from None


def as_yaml(values: dict[str, Any]) -> str:
    import yaml

    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    text: str = yaml.safe_dump(plain, allow_unicode=True, sort_keys=True)
    return text


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
