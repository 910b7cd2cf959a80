"""The interface that the two hubs share: a repository that can be listed, and its place in a cache."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tilewise.errors import InvalidConfig, TilewiseError, UnknownModel
from tilewise.weights.hubs.snapshot import Snapshot
from tilewise.weights.hubs.web import HubRefused, Web

COMMIT = re.compile("[0-9a-f]{40}")
_REVISION = re.compile(r"[\w][\w.+-]*(/[\w][\w.+-]*)*")


class Repository(Protocol):
    """One revision of one model on a hub."""

    @property
    def model(self) -> str: ...

    @property
    def revision(self) -> str: ...

    @property
    def storage(self) -> Path:
        """Folder of the repository in the cache."""

    @property
    def page(self) -> str:
        """Address of the repository for a person to look at."""

    def headers(self) -> Mapping[str, str]:
        """Return the headers that tell the hub who asks."""

    def cached(self) -> Path | None:
        """Return the folder that this revision had when it was last fetched, if any; it may lack files."""

    def snapshot(self, web: Web, patient: bool) -> Snapshot:
        """Ask the hub for the revision's files, again and again if patient.

        Raises HubRefused, HubUnreachable and UnknownModel.
        """

    def refusal(self, refused: HubRefused) -> TilewiseError:
        """Return the error that says what a refusal means, and what to do."""

    def remember(self, snapshot: Snapshot) -> None:
        """Note that the revision is this snapshot now, for `cached`."""


def offline() -> bool:
    """True if the network is not to be used: HF_HUB_OFFLINE counts for both hubs, as it does in vLLM."""
    values = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value in ("1", "ON", "YES", "TRUE") for value in values)


def endpoint(variable: str, default: str) -> str:
    """Return the address of a hub, or of the mirror that an environment variable names. Raises InvalidConfig."""
    value = (os.environ.get(variable) or default).rstrip("/")
    if not value.startswith(("https://", "http://")):
        raise InvalidConfig(f"{variable}={value!r} must start with https:// or http://.")
    return value


def checked_revision(model: str, revision: str) -> str:
    """Return the revision. Raises UnknownModel for one with `..` and the like, as it becomes part of a path."""
    if not _REVISION.fullmatch(revision):
        raise UnknownModel(f"{model}: revision {revision!r} is not the name of a branch, a tag or a commit.")
    return revision
