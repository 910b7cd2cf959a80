"""Services: servers in the background, by name. Plain files and processes; knows nothing of models or flags.

A service has a record, a JSON file beside its log in a folder of the user's. Its process is told by number and birth
from another that got its number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tilewise.environment import Environment
from tilewise.errors import TilewiseError, did_you_mean

_PROC = Path("/proc")
_LOOK = 0.05
"""Seconds between two looks at a process that is to end."""

Ending = Literal["had ended", "ended", "was killed"]


def birth_of(pid: int) -> str | None:
    """Return when a process began, as text to compare; None if there is none, or only a zombie.

    A number is given again once its process is gone: number and birth together name a process.
    """
    return _birth_in_proc(pid) if (_PROC / "self" / "stat").exists() else _birth_by_ps(pid)


def _birth_in_proc(pid: int) -> str | None:
    """Return the id of the boot, and the ticks between it and the beginning of the process."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name in brackets may hold anything; the state is behind it
    boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="ascii").strip()
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"  # starttime, field 22 of proc(5); state is field 3


def _birth_by_ps(pid: int) -> str | None:
    found = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = found.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def end_process(pid: int, birth: str, patience: float, tell: Callable[[str], None] = lambda _: None) -> Ending:
    """End a process by SIGTERM, or by SIGKILL to the group that it leads if it is there after `patience` seconds."""
    if birth_of(pid) != birth:
        return "had ended"
    _send(os.kill, pid, signal.SIGTERM)
    if _wait_for_end(pid, birth, patience):
        return "ended"
    tell(f"It is still there after {patience:g} seconds: SIGKILL.")
    _send(os.killpg, pid, signal.SIGKILL)  # a service leads its own group
    _wait_for_end(pid, birth, patience=10)
    return "was killed"


def _send(kill: Callable[[int, int], None], pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it ended by itself just now
        kill(pid, what)


def _wait_for_end(pid: int, birth: str, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while birth_of(pid) == birth:
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)
    return True


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ServiceProblem(TilewiseError):
    """A service cannot be started, found or stopped."""


@dataclass(frozen=True, slots=True)
class BackgroundService:
    name: str
    pid: int
    birth: str
    """The beginning of the process (`birth_of`), so that another of its number is not taken for it."""
    model: str
    url: str
    uds: str | None
    log: str
    since: float
    """Seconds since 1970."""

    @property
    def alive(self) -> bool:
        return birth_of(self.pid) == self.birth

    @property
    def where(self) -> str:
        """The address at which it listens."""
        return f"unix:{self.uds}" if self.uds else self.url


@dataclass(frozen=True, slots=True)
class ServiceFolder:
    path: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServiceFolder:
        folder = Environment(environment).state_folder / "services"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        return cls(folder.absolute())

    def file(self, name: str, kind: str) -> Path:
        """Return a file of a service: its record (`json`), its `log`, or the `yml` of its flags.

        Raises ServiceProblem for what cannot be the name of a service.
        """
        if not _NAME.fullmatch(name):
            raise ServiceProblem(
                f"A service is named by up to 64 letters, digits, dots, dashes and underscores, got {name!r}."
            )
        return self.path / f"{name}.{kind}"

    def locked(self) -> AbstractContextManager[Any]:
        """Return the lock of the folder: one process at a time starts services or forgets them."""
        from filelock import FileLock  # not above: every verb of the command line imports this module

        return FileLock(self.path / "lock")

    def all(self) -> list[BackgroundService]:
        return [self._read(path) for path in sorted(self.path.glob("*.json"))]

    def find(self, name: str) -> BackgroundService:
        path = self.file(name, "json")
        if not path.exists():
            names = [service.name for service in self.all()]
            listed = f" There are: {', '.join(names)}." if names else " There is none at all."
            raise ServiceProblem(f"There is no service {name!r}.{did_you_mean(name, names) or listed}")
        return self._read(path)

    def _read(self, path: Path) -> BackgroundService:
        try:
            return BackgroundService(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ServiceProblem(f"{path} is damaged: remove it, and end its process by hand.") from None

    def keep(self, service: BackgroundService) -> None:
        path = self.file(service.name, "json")
        new = path.with_name(f".{path.name}.new")
        write_private(new, json.dumps(dataclasses.asdict(service), indent=1))
        new.replace(path)

    def forget(self, service: BackgroundService) -> None:
        """Remove a service's files but the log, unless another service has taken the name meanwhile."""
        with self.locked():
            path = self.file(service.name, "json")
            if path.exists() and self._read(path) == service:
                path.unlink()
                self.file(service.name, "yml").unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


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
