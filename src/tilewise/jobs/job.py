"""Job: the options of a batch run, beside those of engine and server."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.host import require_extra
from tilewise.option import check_range, option
from tilewise.ray_cluster import check_cpus
from tilewise.server.config import ServerConfig

_ELSEWHERE = ("address", "access")
"""Groups of the server's options about who may ask, and where."""
_OF_HTTP = (
    *("h11_max_incomplete_event_size", "h11_max_header_count", "stream_interval", "enable_force_include_usage"),
    *("uvicorn_log_level", "disable_uvicorn_access_log", "disable_access_log_for_endpoints"),
)
_NEEDS = {"url": "enable_metrics", "port": "enable_metrics", "replicas": "ray", "replica_cpus": "ray"}
"""Options -> the option without which they have no effect."""
NO_CONNECTIONS = "it listens nowhere and streams nothing"


@dataclass(frozen=True, kw_only=True)
class Job:
    """The options of a batch run: one input, one output, and how the one becomes the other."""

    GROUP: ClassVar = "batch"
    input_file: Path = option(dataclasses.MISSING, "file with a request a line", short="-i")
    output_file: Path = option(
        dataclasses.MISSING, "file with a result a line; if it is there, what it lacks is asked", short="-o"
    )
    keep_order: bool = option(True, "results in the order of the input; else as they come")
    max_in_flight: int | None = option(
        None,
        "lines that are asked at once (default: max_num_seqs of each replica and a quarter more)",
        alias="max_inflight",
    )
    """The quarter more is ready when a line ends."""
    retries: int = option(2, "how often a line is asked again when the engine died or failed")
    retry_failed: bool = option(False, "ask lines again whose result is a failure")
    enable_metrics: bool = option(False, "let Prometheus read metrics of the run, at --url and --port")
    url: str = option("0.0.0.0", "address of the metrics, with --enable-metrics")
    """Name and default are vLLM's."""
    port: int = option(8000, "port of the metrics, with --enable-metrics")
    ray: str | None = option(
        None,
        "HOST:PORT of a Ray cluster's head, whose nodes answer; auto = RAY_ADDRESS, or the cluster of this machine "
        "(docs/ray.md)",
    )
    """None = one engine, on this machine."""
    replicas: int | None = option(None, "engines of the cluster, with --ray (default: one a node)")
    replica_cpus: float = option(1.0, "CPUs of each, with --ray, which are its threads")

    def __post_init__(self) -> None:
        check_range("max_in_flight", self.max_in_flight, 1)
        check_range("retries", self.retries, 0)
        check_range("port", self.port, 0, 65535)
        if self.ray is not None:
            require_extra("ray", "ray", f"ray={self.ray}")
            if self.enable_metrics:
                raise InvalidConfig("enable_metrics: engines of a cluster have metrics of their own. Leave it out.")
        for name, other in _NEEDS.items():
            if getattr(self, name) != getattr(Job, name) and not getattr(self, other):
                raise InvalidConfig(f"{name}={getattr(self, name)!r} has no effect without {other}: give both.")
        check_range("replicas", self.replicas, 1)
        check_cpus(self.replica_cpus)
        self._check_input()
        self._check_output()

    def _check_input(self) -> None:
        path = self.input_file
        if str(path) == "-":
            raise InvalidConfig("input_file must be a file, got -: a run that goes on later reads it again.")
        if not path.exists():
            raise InvalidConfig(f"input_file: there is no file {path}: name one that is there.")
        if not path.is_file():
            raise InvalidConfig(f"input_file must be a file with a request a line, {path} is none.")
        if not os.access(path, os.R_OK):
            raise InvalidConfig(f"input_file: {path} cannot be read: its permissions forbid it.")

    def _check_output(self) -> None:
        path = self.output_file
        if str(path) == "-":
            raise InvalidConfig("output_file must be a file, got -: what it holds is how a run goes on later.")
        if path.exists() and not path.is_file():
            raise InvalidConfig(f"output_file must be a file, {path} is none.")
        if path.exists() and path.samefile(self.input_file):
            raise InvalidConfig(f"output_file is the input, {path}: name another file.")
        if not path.absolute().parent.is_dir():
            raise InvalidConfig(f"output_file: there is no folder {path.absolute().parent}: make it first.")
        if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise InvalidConfig(f"output_file: {path} cannot be written: its permissions forbid it.")

    def lines_in_flight(self, engine: EngineConfig, engines: int = 1) -> int:
        """Return how many lines are in flight at once; `engines` of a cluster have replicas each."""
        running = engine.max_num_seqs * engine.data_parallel_size * engines
        return self.max_in_flight or running + max(1, running // 4)


def is_connection_option(field: dataclasses.Field[object]) -> bool:
    """Return whether an option of the server is about connections, which a batch run has none of."""
    return field.metadata["group"] in _ELSEWHERE or field.name in _OF_HTTP


def check_server(server: ServerConfig) -> None:
    """Raise InvalidConfig for an option of the server that would have no effect."""
    for field in dataclasses.fields(ServerConfig):
        if is_connection_option(field) and getattr(server, field.name) != field.default:
            raise InvalidConfig(f"{field.name} has no effect on a batch run: {NO_CONNECTIONS}. Leave it out.")
