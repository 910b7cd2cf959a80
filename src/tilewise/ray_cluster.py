"""A Ray cluster: joining or starting it, and finding room on its nodes."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tilewise.environment import Environment
from tilewise.errors import InvalidConfig
from tilewise.host import require_extra

logger = logging.getLogger("tilewise")

NAMESPACE = "tilewise"
WAIT = Environment.ray_wait.name
_REACHED = 10.0
"""Seconds in which a cluster's head has to take a connection."""
_SAID_AGAIN = 30.0
"""Seconds between two lines of the log about waiting."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told that Ray is used
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray advises to set it
    "RAY_SERVE_LOG_TO_STDERR": "0",  # what matters of it is said in our own log
    "RAY_raylet_start_wait_time_s": "300",  # seconds; a minute is too short for a machine that is busy
}
_SMALL_STORE = 100_000_000
"""Bytes of shared memory for objects in a cluster of our own, in which hardly any are."""


Attached = Literal["before", "joined", "started"]
"""This process' way into its cluster: it was in it before, and then must not leave it; has joined it; or started it."""


def attach(work: str, cpus: int = 1) -> Attached:
    """Join the cluster of RAY_ADDRESS or of this machine, else start one on this machine with at least so many CPUs.

    Raises InvalidConfig.
    """
    require_extra("ray", "ray", work)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return "before"
    address = Environment.here().ray_address
    if address.startswith("ray://"):
        raise InvalidConfig(
            f"RAY_ADDRESS={address} is for Ray's client: run on a node, and name its head as HOST:PORT."
        )
    _check_reachable(address)
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
    if address != "local" and _join(address, options):
        return "joined"
    _start_own(max(cpus, os.cpu_count() or 1), options)
    return "started"


def _join(address: str, options: dict[str, Any]) -> bool:
    """Join the cluster of this machine or of RAY_ADDRESS, and return False if there is none and none was named."""
    import ray

    try:
        ray.init(address="auto", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address in ("", "auto"):
            return False
        first = str(error).strip().splitlines()[0]
        raise InvalidConfig(
            f"RAY_ADDRESS={address}: no cluster can be joined there ({first}). One that asks for a token wants "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN in the environment."
        ) from None
    logger.info("Ray: joined the cluster at %s", ray.get_runtime_context().gcs_address)
    return True


def _start_own(cpus: int, options: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(address="local", num_cpus=cpus, object_store_memory=_SMALL_STORE, include_dashboard=False, **options)
    except Exception as error:  # Ray has no name for it
        ray.shutdown()
        raise InvalidConfig(f"Ray cannot be started on this machine ({error}).") from None
    logger.info("Ray: a cluster of this machine alone was started, as there is none; it ends with this process")


def _check_reachable(address: str) -> None:
    """Raise InvalidConfig if nobody answers at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host:  # nothing, auto, local
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED).close()
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            f"RAY_ADDRESS={address}: nobody answers there ({error}): give HOST:PORT of the cluster's head, as "
            "`ray start --head` prints it."
        ) from None


def reserve_nodes(bundles: Sequence[Mapping[str, float]], name: str, nodes: int) -> Any:
    """Return a placement group with room for all bundles, the first on this node, on as few nodes as they fit on.

    Room that is not there is waited for. Raises InvalidConfig, naming what is wanted and what there is, when none
    came in time, or where the cluster has fewer nodes than asked for.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    selectors = [here, *({} for _ in bundles[1:])]
    group = placement_group([dict(one) for one in bundles], "PACK", name, bundle_label_selector=selectors)
    patience, started = seconds_to_wait(), time.monotonic()
    step = 1.0
    while not (group.wait(step) and len(alive_nodes()) >= nodes):
        waited = time.monotonic() - started
        if waited > patience:
            remove_placement_group(group)
            raise InvalidConfig(f"{_wanted(bundles, nodes)} Nothing came free in {patience:g} seconds ({WAIT}).")
        logger.info("%s Waiting, for %.0f seconds at most (%s).", _wanted(bundles, nodes), patience - waited, WAIT)
        step = min(_SAID_AGAIN, max(1.0, patience - waited))
    return group


def check_cpus(cpus: float) -> None:
    """Raise InvalidConfig for a number of CPUs that Ray does not count."""
    if not 0 <= cpus < float("inf"):
        raise InvalidConfig(f"replica_cpus must be 0 or above, got {cpus}.")
    if cpus > 1 and cpus != int(cpus):
        raise InvalidConfig(f"replica_cpus={cpus}: Ray counts whole CPUs from 1 on; round it.")


def seconds_to_wait() -> float:
    return Environment.here().ray_wait


def alive_nodes() -> dict[str, dict[str, Any]]:
    """Return the nodes that Ray knows to be alive, by their ids."""
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def node_name(node_id: str) -> str:
    """Return the name of a node as people know it: the start of its id, and its host."""
    import ray

    found = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
    if found is None:
        return f"node {node_id[:8]}"
    address, name = found["NodeManagerAddress"], found["NodeName"]
    return f"node {node_id[:8]} ({address if name == address else f'{name}, {address}'})"


def _wanted(bundles: Sequence[Mapping[str, float]], nodes: int) -> str:
    import ray

    kind = next(iter(bundles[0]))
    free, total = ray.available_resources().get(kind, 0), ray.cluster_resources().get(kind, 0)
    many = f" on at least {nodes} nodes" if nodes > 1 else ""
    return (
        f"Ray: {len(bundles)} ranks need {len(bundles)} {kind}{many}, one of them on this node; the cluster has "
        f"{free:g} of {total:g} {kind} free, on {len(alive_nodes())} nodes."
    )
