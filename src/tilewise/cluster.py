"""A Ray cluster: this process' way in, and room on its nodes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tilewise.errors import InvalidConfig
from tilewise.extras import need

logger = logging.getLogger("tilewise")

NAMESPACE = "tilewise"
WAIT = "TILEWISE_RAY_WAIT"
"""Variable of the environment: seconds that ranks wait for room in the cluster, 600 unless it is set."""
_SAID_AGAIN = 30.0
"""Seconds between two lines about waiting."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nobody is told that Ray is used, and Ray does not advise on variables."""
_SMALL_STORE = 100_000_000
"""Bytes of shared memory for objects in a cluster of our own, in which hardly any are."""


def attach(work: str, cpus: int = 1) -> bool:
    """Join the cluster of RAY_ADDRESS or of this machine, else start one on this machine with at least so many CPUs.

    False where this process had joined before; then it is not ours to leave. Raises InvalidConfig.
    """
    need("ray", "ray", work)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise InvalidConfig(
            f"RAY_ADDRESS={address} is for Ray's client: run on a node, and name its head as HOST:PORT."
        )
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
    try:
        if address != "local":
            ray.init(address="auto", **options)
            logger.info("Ray: joined the cluster at %s", ray.get_runtime_context().gcs_address)
            return True
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address not in ("", "auto"):
            first = str(error).strip().splitlines()[0]
            raise InvalidConfig(f"RAY_ADDRESS={address}: no cluster can be joined there ({first}).") from None
    cpus = max(cpus, os.cpu_count() or 1)
    ray.init(address="local", num_cpus=cpus, object_store_memory=_SMALL_STORE, include_dashboard=False, **options)
    logger.info("Ray: no cluster found, so one was started on this machine; it ends with this process")
    return True


def place(bundles: Sequence[Mapping[str, float]], name: str, nodes: int) -> Any:
    """A placement group with room for all bundles, the first of them on this node, packed on as few as they fit on.

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
    while not (group.wait(step) and len(alive()) >= nodes):
        waited = time.monotonic() - started
        if waited > patience:
            remove_placement_group(group)
            raise InvalidConfig(f"{_wanted(bundles, nodes)} Nothing came free in {patience:g} seconds ({WAIT}).")
        logger.info("%s Waiting, for %.0f seconds at most (%s).", _wanted(bundles, nodes), patience - waited, WAIT)
        step = min(_SAID_AGAIN, max(1.0, patience - waited))
    return group


def seconds_to_wait() -> float:
    asked = os.environ.get(WAIT, "600")
    try:
        seconds = float(asked)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise InvalidConfig(f"{WAIT} must be a number of seconds above 0, found {asked!r}.")
    return seconds


def alive() -> dict[str, dict[str, Any]]:
    """The nodes that Ray has not missed, by their ids."""
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def called(node_id: str) -> str:
    """A node as people know it."""
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
        f"{free:g} of {total:g} {kind} free, on {len(alive())} nodes."
    )
