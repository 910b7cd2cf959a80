"""Asks a server how it is."""

from __future__ import annotations

from typing import Literal

from tilewise.services.record import Service

State = Literal["running", "starting", "unhealthy", "ended"]


def state_of(service: Service, timeout: float = 2.0) -> State:
    """starting: it does not answer yet, or no more; unhealthy: it says that its engine is not there."""
    if not service.alive:
        return "ended"
    answer = health(service, timeout)
    return "starting" if answer is None else "running" if answer == 200 else "unhealthy"


def health(service: Service, timeout: float) -> int | None:
    """The status of /health, None without an answer."""
    import httpx

    # The certificate is for the names that clients use; here it is our own process, asked at its own address.
    transport = httpx.HTTPTransport(uds=service.uds, verify=False)
    try:
        with httpx.Client(transport=transport, timeout=timeout, trust_env=False) as client:
            return client.get(f"{service.url}/health").status_code
    except httpx.HTTPError:
        return None
