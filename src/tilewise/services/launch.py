"""Starts a service and waits until it answers."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewise.services.health import health
from tilewise.services.process import birth_of, end
from tilewise.services.record import Service, ServiceFolder, ServiceProblem, write_private

_PAUSE = 0.2  # seconds between two looks
_TELL_EVERY = 10.0  # seconds
_LAST_LINES = 15

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run, and where it is going to answer."""

    name: str
    command: Sequence[str]
    model: str
    url: str
    uds: str | None = None
    flags: str = ""
    """Kept beside the record, in a file that `command` may name."""


def launch(folder: ServiceFolder, wanted: Wanted, timeout: float, tell: Tell) -> Service:
    """A service that answers. Raises ServiceProblem when its process ends or `timeout` seconds pass before it does."""
    with folder.locked():
        _refuse_clash(folder, wanted.name)
        process, service = _spawn(folder, wanted)
        folder.keep(service)
    try:
        _wait_until_healthy(process, service, timeout, tell)
    except BaseException:
        # Also when a person interrupts: what is not ready is not left behind.
        end(service.pid, service.birth, patience=10)
        folder.forget(service)
        raise
    return service


def _refuse_clash(folder: ServiceFolder, name: str) -> None:
    if folder.file(name, "json").exists() and (service := folder.find(name)).alive:
        raise ServiceProblem(
            f"A service {name} runs already, at {service.where} (pid {service.pid}): `tilewise stop {name}`, "
            "or give this one another --name."
        )


def _spawn(folder: ServiceFolder, wanted: Wanted) -> tuple[subprocess.Popen[bytes], Service]:
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
    return process, Service(wanted.name, process.pid, birth, wanted.model, wanted.url, wanted.uds, str(log), since)


def _wait_until_healthy(process: subprocess.Popen[bytes], service: Service, timeout: float, tell: Tell) -> None:
    started = told = time.monotonic()
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
