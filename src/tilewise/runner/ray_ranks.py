"""Ranks that are actors of a Ray cluster, where a placement group has room for them; the first one stays where it is.

What ranks tell each other goes over torch.distributed alone. Ray starts them, brings their log to the first one's, and
says which of them has ended.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tilewise.config import EngineConfig
from tilewise.console import EngineFormatter, set_up_logs
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig, RankDied, TilewiseError
from tilewise.host import Memory, short_waits
from tilewise.platforms import current_platform
from tilewise.ray_cluster import alive_nodes, attach, node_name, reserve_nodes, seconds_to_wait
from tilewise.runner.ranks import RankTask, follow
from tilewise.runner.ray_nodes import (
    Folders,
    NodeFacts,
    RankConnections,
    check_folders,
    check_versions,
    choose_interface,
    folders_here,
    free_port,
)

logger = logging.getLogger("tilewise")

_BUNDLE = {"CPU": 1.0}
"""Resources of Ray that a rank takes."""
_DETAIL = re.compile(r"Worker exit detail: (.*?)\.?(?: Some common causes|$)")
"""Pattern of Ray's words about the end of a process."""
_PATIENCE = 10.0
"""Seconds that a rank is given to end by itself."""


class RankActor:
    """A rank's process. Its two long calls, the log and the work, run beside each other."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def setting(self) -> NodeFacts:
        return NodeFacts.here()

    def folders(self, folders: Sequence[Path]) -> Folders:
        return folders_here(folders)

    def log(self) -> Iterator[str]:
        """Yield lines of the log as they are written, until the rank's work has ended."""
        while (line := self._lines.get()) is not None:
            yield line

    def run(self, task: RankTask) -> None:
        """Join, build what the first rank says, and follow it until it ends."""
        set_up_logs(f"Rank{task.rank}", task.log_level)
        logging.getLogger().addHandler(_Forwarded(f"Rank{task.rank}", self._lines.put))
        torch.set_num_threads(task.threads)
        try:
            choose_interface(ray.util.get_node_ip_address())
            follow(task, current_platform(task.config.device))
        finally:
            self._lines.put(None)


class _Forwarded(logging.Handler):
    """A log handler that passes lines on."""

    def __init__(self, process: str, put: Callable[[str], None]) -> None:
        super().__init__()
        self.setFormatter(EngineFormatter(process))
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        self._put(self.format(record))


class RayActors:
    """The actors that are ranks, and their placement group. A `RankLauncher`."""

    notices = 30.0

    def __init__(self, config: EngineConfig) -> None:
        self._size, self._nodes = config.layout.ranks, config.nnodes
        self._attached = attach("distributed_executor_backend=ray", self._size)
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._runs: list[Any] = []
        self._where: list[str] = []
        """Names of the nodes of all ranks."""
        self._connections = RankConnections()
        self._ending = False
        self._interface = Environment.here().gloo_interface
        self.address, self.threads = "", 1
        self._settings: list[NodeFacts] = []
        """Settings of all ranks but the first."""
        try:
            self._find_room()
        except BaseException:
            self.end()
            raise

    def _find_room(self) -> None:
        until = time.monotonic() + seconds_to_wait()
        while not (found := self._placed()):
            if time.monotonic() > until:
                raise RankDied("Nodes of the Ray cluster were lost again and again as ranks were placed; see the log.")
        self._settings = found
        check_versions(NodeFacts.here(), dict(zip(self._where[1:], found, strict=True)))

    def share(self, here: Memory) -> Memory:
        ranks = Counter(self._where)
        found = dict(zip(self._where, [here, *(one.memory for one in self._settings)], strict=True))
        return Memory(
            min(memory.total // ranks[where] for where, memory in found.items()),
            min(memory.free // ranks[where] for where, memory in found.items()),
        )

    def start(self, tasks: Sequence[RankTask]) -> None:
        self._check_folders([folder.path for folder in (tasks[0].model, tasks[0].draft) if folder is not None])
        host = ray.util.get_node_ip_address()
        self.address = f"tcp://[{host}]:{free_port(host)}" if ":" in host else f"tcp://{host}:{free_port(host)}"
        choose_interface(host)
        self._connections.begin()
        counts, nodes = Counter(self._where), alive_nodes()
        threads = {node_name(key): max(1, int(nodes[key]["Resources"].get("CPU", 1))) for key in nodes}
        each = [max(1, threads.get(where, 1) // counts[where]) for where in self._where]
        self.threads = min(torch.get_num_threads(), each[0])
        for actor, task, number in zip(self._actors, tasks, each[1:], strict=True):
            self._runs.append(actor.run.remote(replace(task, address=self.address, threads=number)))
            log = actor.log.options(num_returns="streaming").remote()
            threading.Thread(target=self._pass_on, args=(log,), name=f"tilewise-rank{task.rank}", daemon=True).start()

    def _check_folders(self, folders: Sequence[Path]) -> None:
        try:
            found = ray.get([actor.folders.remote(folders) for actor in self._actors], timeout=seconds_to_wait())
        except (RayActorError, GetTimeoutError) as error:
            raise RankDied(f"A rank was lost before the model was there: {_reason(error)}.") from None
        check_folders(folders_here(folders), dict(zip(self._where[1:], found, strict=True)))

    def _placed(self) -> list[NodeFacts]:
        """Start actors for all ranks but the first, and return their settings; none if a node was lost meanwhile."""
        self._group = reserve_nodes([_BUNDLE] * self._size, "tilewise-ranks", self._nodes)
        places = placement_group_table(self._group)["bundles_to_node_id"]
        # Ranks of one node stand beside each other, behind those of the first one's.
        bundles = sorted(range(self._size), key=lambda bundle: (places[bundle] != places[0], places[bundle], bundle))
        self._where = [node_name(places[bundle]) for bundle in bundles]
        self._actors = [self._actor(bundle) for bundle in bundles[1:]]
        asked = [actor.setting.remote() for actor in self._actors]
        found: list[NodeFacts] = []
        for where, one in zip(self._where[1:], asked, strict=True):
            try:
                found.append(ray.get(one, timeout=seconds_to_wait()))
            except ActorUnavailableError:
                pass
            except (RayActorError, GetTimeoutError) as error:
                if {places[bundle] for bundle in bundles} <= alive_nodes().keys():
                    raise InvalidConfig(f"A rank cannot be started on {where}: {_reason(error)}") from None
        if len(found) == len(asked):
            for rank, (where, setting) in enumerate(zip(self._where[1:], found, strict=True), 1):
                logger.info("Rank %d of %d is process %d of %s", rank, self._size, setting.pid, where)
            return found
        logger.warning("Ray: a node was lost as ranks were started; they are placed again.")
        self._give_back()
        time.sleep(1)
        return []

    def _actor(self, bundle: int) -> Any:
        own = Environment.here().shown  # what ranks choose by variables, all of them choose alike
        return (
            ray.remote(RankActor)
            .options(
                num_cpus=_BUNDLE["CPU"],
                max_concurrency=2,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, bundle),
                runtime_env={"env_vars": {**own, **short_waits(os.environ)}},
            )
            .remote()
        )

    def joined(self) -> None:
        self._connections.end()

    def _pass_on(self, lines: Any) -> None:
        """Print a rank's log until it ends. If the rank has died, cut this process' connections to other ranks: a node
        without power closes none, and whoever waits for it would wait in vain for minutes.
        """
        try:
            for line in lines:
                print(ray.get(line), file=sys.stderr, flush=True)
        except (RayError, ValueError):  # it has died, or this process is leaving the cluster
            pass
        if not self._ending and self.dead() is not None:
            self._connections.cut()

    def dead(self) -> str | None:
        ended, _ = ray.wait(self._runs, num_returns=len(self._runs), timeout=0)
        for rank, run in enumerate(self._runs, 1):
            if run in ended:
                try:
                    ray.get(run)
                except RayError as error:
                    return f"Rank {rank} of {self._size}, on {self._where[rank]}, {_reason(error)}"
        return None

    def end(self) -> None:
        self._ending = True
        if self._runs:
            with suppress(RayError):
                ray.wait(self._runs, num_returns=len(self._runs), timeout=_PATIENCE)
        self._give_back()
        if self._interface:
            os.environ["GLOO_SOCKET_IFNAME"] = self._interface
        else:
            os.environ.pop("GLOO_SOCKET_IFNAME", None)
        if self._attached != "before":
            ray.shutdown()

    def _give_back(self) -> None:
        with suppress(RayError):
            for actor in self._actors:
                ray.kill(actor)
            if self._group is not None:
                remove_placement_group(self._group)
        self._actors, self._runs, self._group = [], [], None


def _reason(error: Exception) -> str:
    """Return how a rank ended, in a few words."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, TilewiseError):
            return f"ended with an error: {str(cause).rstrip('.')}"
        return f"ended with an error: {str(cause).strip().splitlines()[0]}"
    if isinstance(error, ActorUnavailableError):
        return "cannot be reached any more: its process or its node is gone"
    text = " ".join(str(error).split())
    if "node" in text and "died" in text.partition("node")[2][:200]:
        return "is gone with its node"
    said = _DETAIL.search(text)
    return f"ended ({said[1] if said else text[:300]})"
