"""Starts a service, waits until it answers, and asks it how it is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tilewise.services.record import (
    BackgroundService,
    ServiceFolder,
    ServiceProblem,
    birth_of,
    end_process,
    write_private,
)

State = Literal["running", "starting", "unhealthy", "ended"]


def state_of(service: BackgroundService, timeout: float = 2.0) -> State:
    """Return how a service is.

    starting: it does not answer yet, or no more; unhealthy: it says that its engine is not there.
    """
    if not service.alive:
        return "ended"
    answer = health(service, timeout)
    return "starting" if answer is None else "running" if answer == 200 else "unhealthy"


def health(service: BackgroundService, timeout: float) -> int | None:
    """Return the status of /health; None without an answer."""
    import httpx

    # The certificate is for the names that clients use; here it is our own process, asked at its own address.
    transport = httpx.HTTPTransport(uds=service.uds, verify=False)
    try:
        with httpx.Client(transport=transport, timeout=timeout, trust_env=False) as client:
            return client.get(f"{service.url}/health").status_code
    except httpx.HTTPError:
        return None


_PAUSE = 0.2  # seconds between two looks
_TELL_EVERY = 10.0  # seconds
_LAST_LINES = 15

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service to be started: its command, and the address where it is going to answer."""

    name: str
    command: Sequence[str]
    model: str
    url: str
    uds: str | None = None
    flags: str = ""
    """Text of a YAML file of flags that is kept beside the record; `command` may name it."""


def launch(folder: ServiceFolder, wanted: ServiceSpec, timeout: float, tell: Tell) -> BackgroundService:
    """Start a service, and return it once it answers.

    Raises ServiceProblem when its process ends or `timeout` seconds pass before it does.
    """
    with folder.locked():
        _refuse_clash(folder, wanted.name)
        process, service = _spawn(folder, wanted)
        folder.keep(service)
    try:
        _wait_until_healthy(process, service, timeout, tell)
    except BaseException:
        # Also when a person interrupts: what is not ready is not left behind.
        end_process(service.pid, service.birth, patience=10)
        folder.forget(service)
        raise
    return service


def _refuse_clash(folder: ServiceFolder, name: str) -> None:
    if folder.file(name, "json").exists() and (service := folder.find(name)).alive:
        raise ServiceProblem(
            f"A service {name} runs already, at {service.where} (pid {service.pid}): `tilewise stop {name}`, "
            "or give this one another --name."
        )


def _spawn(folder: ServiceFolder, wanted: ServiceSpec) -> tuple[subprocess.Popen[bytes], BackgroundService]:
    log = folder.file(wanted.name, "log")
    if log.exists():
        log.replace(folder.file(wanted.name, "log.1"))
    write_private(log, "")
    write_private(folder.file(wanted.name, "yml"), wanted.flags)
    with log.open("ab") as output:
        process = subprocess.Popen(
            wanted.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a closed terminal and its Ctrl-C are not the service's
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    birth = birth_of(process.pid) or "ended at once"
    since = time.time()
    return process, BackgroundService(
        wanted.name, process.pid, birth, wanted.model, wanted.url, wanted.uds, str(log), since
    )


def _wait_until_healthy(
    process: subprocess.Popen[bytes], service: BackgroundService, timeout: float, tell: Tell
) -> None:
    started = told = time.monotonic()
    # An answer counts only while the process lives: after its end another may answer at the address.
    while health(service, timeout=2.0) != 200 or process.poll() is not None:
        if process.poll() is not None:
            raise ServiceProblem(
                f"{service.name} ended with status {process.returncode} before it answered. Its last lines:\n"
                f"{last_lines(Path(service.log))}"
            )
        now = time.monotonic()
        if now - started > timeout:
            raise ServiceProblem(
                f"{service.name} did not answer within {timeout:g} seconds, and was stopped: give a longer --timeout. "
                f"Its last lines:\n{last_lines(Path(service.log))}"
            )
        if now - told > _TELL_EVERY:
            told = now
            tell(f"{now - started:.0f} s: {last_lines(Path(service.log), 1) or 'no line yet'}")
        time.sleep(_PAUSE)


def last_lines(log: Path, count: int = _LAST_LINES) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-count:])
