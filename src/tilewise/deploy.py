"""`tilewise deploy`: servers on the nodes of a Ray cluster behind one address, by Ray Serve.

`tilewise.deploy:application` is what a config file of Serve names as its `import_path`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tilewise.cli.flags.flag import BadUsage, flags_of, names_of
from tilewise.cli.flags.parse import CommandLine, values_of
from tilewise.cli.flags.settings import Settings, make_settings, serve_flags, values_of_line
from tilewise.cli.flags.verb import Verb
from tilewise.console import set_up_logs
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.host import require_extra
from tilewise.option import option
from tilewise.ray_cluster import attach, check_cpus
from tilewise.server.config import ServerConfig

logger = logging.getLogger("tilewise")


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """The options that a config file of Serve may have, too."""

    GROUP: ClassVar = "deployment"
    replicas: int = option(1, "servers, each with an engine of its own")
    autoscale: str | None = option(None, "MIN:MAX = as many replicas as there are requests for, in place of --replicas")
    replica_cpus: float | None = option(
        None,
        "CPUs of each replica, as Ray counts them; its engine has as many threads (default: 1, or none where ranks are "
        "Ray's and counted themselves)",
    )


@dataclass(frozen=True, kw_only=True)
class DeployOptions(ReplicaOptions):
    name: str | None = option(None, "name of the deployment (default: that of the model)")
    address: str | None = option(
        None, "HOST:PORT of the cluster's head (default: RAY_ADDRESS, or the cluster of this machine)"
    )
    detach: bool = option(False, "return when it answers; else it is stopped by Ctrl-C")
    stop: str | None = option(None, "NAME of a deployment to stop, in place of all else")


_NAMES = names_of(DeployOptions)
_ELSEWHERE = ("uds", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_ciphers")
"""Options of the server's socket, which belongs to Ray Serve here."""
_OURS = re.compile(r"tilewise\.errors\.\w+: (.+)")


@dataclass(frozen=True)
class RayDeployment:
    """A deployment, checked as far as it can be without a cluster."""

    settings: Settings
    replicas: int | tuple[int, int]
    cpus: float
    name: str | None = None
    detach: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], environment: Mapping[str, str]) -> RayDeployment:
        """Make a deployment from values of flags by their names. Raises InvalidConfig."""
        own = {name: value for name, value in values.items() if name in _NAMES}
        settings = make_settings({name: value for name, value in values.items() if name not in own}, environment)
        _check_socket(settings.server)
        ranks = settings.engine.distributed_executor_backend == "ray" and settings.engine.layout.ranks > 1
        cpus = own.get("replica_cpus")
        cpus = (0.0 if ranks else 1.0) if cpus is None else cpus
        check_cpus(cpus)
        return cls(settings, _replicas(own), cpus, own.get("name"), bool(own.get("detach")))

    @property
    def prefix(self) -> str:
        """Path below which it answers."""
        return self.settings.server.root_path or "/"

    def application(self) -> Any:
        """Return it as an application of Ray Serve."""
        from tilewise.server.replica import deployment

        engine = self.settings.engine
        # A replica whose engine died is replaced as a whole, unless engines are to be started again in their place.
        restarts = 0 if "max_engine_restarts" not in self.settings.given else self.settings.server.max_engine_restarts
        server = dataclasses.replace(self.settings.server, max_engine_restarts=restarts)
        return deployment(engine, server, self.replicas, self.cpus)


def application(args: dict[str, Any]) -> Any:
    """Return Serve's application, made of flags by their names, as a config file of Serve has them under `args`.

    Raises InvalidConfig.
    """
    flags = [*flags_of(ReplicaOptions), *serve_flags()]
    return RayDeployment.of(values_of(args, flags, "args"), os.environ).application()


def run(line: CommandLine) -> int:
    """Deploy or stop what a command line says. Raises BadUsage and InvalidConfig."""
    address, stopped = line.values.pop("address", None), line.values.pop("stop", None)
    if stopped is not None:
        if others := [*line.positional, *line.values]:
            raise BadUsage(f"--stop takes the name of a deployment alone, got {', '.join(others)} besides.")
        set_up_logs("Deploy", Environment.here().logging_level)
        join(address)
        return stop(stopped)
    own = {name: line.values.pop(name) for name in _NAMES & line.values.keys()}
    wanted = RayDeployment.of(own | values_of_line(line), os.environ)
    wanted.settings.log("Deploy")
    join(address)
    return deploy(wanted, wanted.name or wanted.settings.name)


def join(address: str | None) -> None:
    """Let the cluster at an address be the one that is joined."""
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


def deploy(wanted: RayDeployment, name: str) -> int:
    """Deploy servers, and wait until they answer; unless detached, stay until a signal. Raises InvalidConfig."""
    require_extra("ray.serve", "ray", "tilewise deploy")
    if attach("tilewise deploy") == "started" and wanted.detach:
        raise InvalidConfig("detach: there is no cluster that would stay. Start one first: ray start --head.")
    from ray import serve

    server = wanted.settings.server
    serve.start(http_options={"host": server.host or "0.0.0.0", "port": server.port})
    try:
        serve.run(wanted.application(), name=name, route_prefix=wanted.prefix)
    except RuntimeError as error:
        said = _OURS.findall(_status(name))
        _delete(name)
        raise InvalidConfig(said[-1] if said else f"{name} cannot be deployed: {error}") from None
    logger.info("%s is deployed at %s; `tilewise deploy --stop %s`", name, server.url, name)
    if not wanted.detach:
        _wait_for_signal()
        _delete(name)
    return 0


def stop(name: str) -> int:
    """Stop a deployment. Raises InvalidConfig where there is none of this name."""
    require_extra("ray.serve", "ray", "tilewise deploy")
    attached = attach("tilewise deploy --stop")
    from ray import serve

    known = () if attached == "started" else tuple(serve.status().applications)
    if name not in known:
        others = f"there are {', '.join(known)}" if known else "there is none"
        raise InvalidConfig(f"No deployment is called {name!r}: {others}.")
    _delete(name)
    return 0


def _replicas(own: Mapping[str, Any]) -> int | tuple[int, int]:
    asked, count = own.get("autoscale"), own.get("replicas", 1)
    if asked is None:
        if count < 1:
            raise InvalidConfig(f"replicas must be 1 or above, got {count}.")
        return int(count)
    if "replicas" in own:
        raise InvalidConfig(f"replicas={count} and autoscale={asked}: give one of them.")
    least, _, most = str(asked).partition(":")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise InvalidConfig(
            f"autoscale must be MIN:MAX, two whole numbers from 1 on, as 1:4, which YAML takes for a "
            f"time unless it is in quotes; got {asked!r}."
        )
    return int(least), int(most)


def _check_socket(server: ServerConfig) -> None:
    for name in _ELSEWHERE:
        if getattr(server, name) is not None:
            raise InvalidConfig(f"{name} is not possible: Ray Serve listens, at host and port. Leave it out.")


def _status(name: str) -> str:
    from ray import serve

    found = serve.status().applications.get(name)
    if found is None:
        return ""
    return "\n".join([found.message, *(one.message for one in found.deployments.values())])


def _delete(name: str) -> None:
    """Delete a deployment, and shut Serve down with the last one."""
    from ray import serve

    serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()
    logger.info("%s is stopped", name)


def _wait_for_signal() -> None:
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    told.wait()


DEPLOY = Verb(
    usage="tilewise deploy [MODEL] [--replicas N | --autoscale MIN:MAX] [--name NAME] [--detach] [FLAG ...]",
    about="Serve a model on the nodes of a Ray cluster, by Ray Serve: as many servers as you say, behind one address, "
    "each replaced when it fails. Flags are those of `tilewise serve`; see docs/ray.md.",
    run=run,
    options=(DeployOptions,),
    shared=serve_flags,
    names_model=True,
    examples="""\
examples:
  tilewise deploy OpenGVLab/InternVL3-8B --replicas 2 --replica-cpus 16
  tilewise deploy ./InternVL3-1B --autoscale 1:4 --name small --detach
  tilewise deploy --stop small
""",
)
