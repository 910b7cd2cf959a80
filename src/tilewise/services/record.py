"""What is known of each service: a JSON file and a log in a folder of the user's, which nobody else may read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tilewise.errors import TilewiseError, did_you_mean
from tilewise.services.process import birth_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ServiceProblem(TilewiseError):
    """A service cannot be started, found or stopped."""


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    pid: int
    birth: str
    """Of the process, so that another of its number is not taken for it."""
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
        """Where it listens."""
        return f"unix:{self.uds}" if self.uds else self.url


def state_folder(environment: Mapping[str, str]) -> Path:
    """TILEWISE_HOME, or where XDG has the state of programs."""
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
        """Of a service: its `json`, its `log`, the `yml` of its flags."""
        if not _NAME.fullmatch(name):
            raise ServiceProblem(
                f"A service is named by up to 64 letters, digits, dots, dashes and underscores, got {name!r}."
            )
        return self.path / f"{name}.{kind}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time starts services or forgets them."""
        from filelock import FileLock  # not above: every verb of the command line imports this module

        with FileLock(self.path / "lock"):
            yield

    def all(self) -> list[Service]:
        return [self._read(path) for path in sorted(self.path.glob("*.json"))]

    def find(self, name: str) -> Service:
        path = self.file(name, "json")
        if not path.exists():
            names = [service.name for service in self.all()]
            listed = f" There are: {', '.join(names)}." if names else " There is none at all."
            raise ServiceProblem(f"There is no service {name!r}.{did_you_mean(name, names) or listed}")
        return self._read(path)

    def _read(self, path: Path) -> Service:
        try:
            return Service(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ServiceProblem(f"{path} is damaged: remove it, and end its process by hand.") from None

    def keep(self, service: Service) -> None:
        path = self.file(service.name, "json")
        new = path.with_name(f".{path.name}.new")
        write_private(new, json.dumps(dataclasses.asdict(service), indent=1))
        new.replace(path)

    def forget(self, service: Service) -> None:
        """All but the log, unless another process has taken the name meanwhile."""
        with self.locked():
            path = self.file(service.name, "json")
            if path.exists() and self._read(path) == service:
                path.unlink()
                self.file(service.name, "yml").unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """A file that its owner alone may read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
