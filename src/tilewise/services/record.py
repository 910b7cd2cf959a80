"""The record of each service: a JSON file and a log in a folder of the user's, and a process by number and birth."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tilewise.errors import TilewiseError, did_you_mean

_PROC = Path("/proc")
_PAUSE = 0.05  # seconds

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
    with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
        kill(pid, what)


def _wait_for_end(pid: int, birth: str, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while birth_of(pid) == birth:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
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


def state_folder(environment: Mapping[str, str]) -> Path:
    """Return TILEWISE_HOME, or the folder where XDG has the state of a program."""
    home = environment.get("TILEWISE_HOME")
    state = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() if home else Path(state).expanduser() / "tilewise"


@dataclass(frozen=True, slots=True)
class ServiceFolder:
    path: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServiceFolder:
        folder = state_folder(environment) / "services"
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folder: one process at a time starts services or forgets them."""
        from filelock import FileLock  # not above: every verb of the command line imports this module

        with FileLock(self.path / "lock"):
            yield

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
