"""Repositories of the two hubs: what one lists, where it lies in a cache, and what a refusal means.

Token, cache folder and layout are huggingface_hub's. Listing and bytes are fetched by `Web`, as ModelScope's are: the
library's downloads throw a partial file away when the process ends and begin again at the first byte, compare no
digests, and fail with errors of httpx before its version 2, of httpx2 since. ModelScope's own package is not used: it
needs cryptography and requests, reads its login with pickle, and prints progress bars whether or not anybody looks.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tilewise.environment import Environment, Variable
from tilewise.errors import DownloadFailed, InvalidConfig, TilewiseError, UnknownModel
from tilewise.weights.adapter import NeededAdapterFiles
from tilewise.weights.file_names import NeededFiles
from tilewise.weights.hubs.snapshot import RemoteFile, Snapshot
from tilewise.weights.hubs.web import HubRefused, Web

COMMIT = re.compile("[0-9a-f]{40}")
_REVISION = re.compile(r"[\w][\w.+-]*(/[\w][\w.+-]*)*")


@dataclass(frozen=True)
class Repository(ABC):
    """One revision of one model on a hub."""

    model: str
    revision: str
    cache: Path
    endpoint: str
    """Address of the hub, or of a mirror."""
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not _REVISION.fullmatch(self.revision):  # it becomes part of a path
            raise UnknownModel(
                f"{self.model}: revision {self.revision!r} is not the name of a branch, a tag or a commit."
            )

    @property
    @abstractmethod
    def storage(self) -> Path:
        """Folder of the repository in the cache."""

    @property
    @abstractmethod
    def page(self) -> str:
        """Address of the repository for a person to look at."""

    @abstractmethod
    def headers(self) -> Mapping[str, str]:
        """Return the headers that tell the hub who asks."""

    @abstractmethod
    def cached(self) -> Path | None:
        """Return the folder that this revision had when it was last fetched, if any; it may lack files."""

    @abstractmethod
    def refusal(self, refused: HubRefused) -> TilewiseError:
        """Return the error that says what a refusal means, and what to do."""

    def remember(self, snapshot: Snapshot) -> None:  # noqa: B027 - a folder that is named for the revision needs none
        """Note that the revision is this snapshot now, for `cached`."""

    def snapshot(self, web: Web, patient: bool) -> Snapshot:
        """Ask the hub for the revision's files, again and again if patient.

        Raises HubRefused, HubUnreachable and UnknownModel.
        """
        listing = web.json(self._listing, patient)
        try:
            return self._listed(listing)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HubRefused(self._listing, 200, message=f"no listing of files: {error!r}") from None

    @property
    @abstractmethod
    def _listing(self) -> str:
        """Address of the list of files."""

    @abstractmethod
    def _listed(self, listing: Any) -> Snapshot:
        """Read the list of files, of which those at the root count."""


class HuggingFace(Repository):
    """A repository of Hugging Face, or of a mirror of it."""

    @classmethod
    def of(cls, model: str, revision: str | None, cache: str | None, token: str | None = None) -> HuggingFace:
        from huggingface_hub import constants

        folder = Path(cache or constants.HF_HUB_CACHE).expanduser()
        return cls(model, revision or "main", folder, _endpoint(Environment.hf_endpoint, constants.ENDPOINT), token)

    @property
    def storage(self) -> Path:
        return self.cache / f"models--{self.model.replace('/', '--')}"

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{self.model}"

    def headers(self) -> Mapping[str, str]:
        from huggingface_hub import constants, get_token

        token = self.token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
        return {"Authorization": f"Bearer {token}"} if token else {}

    def cached(self) -> Path | None:
        if COMMIT.fullmatch(self.revision):
            return self.storage / "snapshots" / self.revision
        if not self._ref.is_file():
            return None
        return self.storage / "snapshots" / self._ref.read_text(encoding="utf-8").strip()

    def remember(self, snapshot: Snapshot) -> None:
        if self.cached() != snapshot.folder:
            self._ref.parent.mkdir(parents=True, exist_ok=True)
            self._ref.write_text(snapshot.revision, encoding="utf-8")

    def refusal(self, refused: HubRefused) -> TilewiseError:
        if refused.code == "RevisionNotFound":
            return UnknownModel(
                f"{self.model} has no revision {self.revision!r}: see the branches, tags and commits on {self.page}."
            )
        if refused.code == "GatedRepo" or refused.status == 403:
            return DownloadFailed(
                f"{self.model} is gated: accept its terms on {self.page}, and set HF_TOKEN to a token of that account "
                f"({refused})."
            )
        if refused.status in (401, 404):
            return UnknownModel(
                f"{self.model}: {self.endpoint} knows no such model, or it is private. Check the spelling; for a "
                f"private one set HF_TOKEN ({refused})."
            )
        return DownloadFailed(f"{self.model} cannot be downloaded: {refused}. Check HF_ENDPOINT and proxies.")

    @property
    def _ref(self) -> Path:
        return self.storage / "refs" / self.revision

    @property
    def _listing(self) -> str:
        return f"{self.endpoint}/api/models/{self.model}/revision/{quote(self.revision, safe='')}?blobs=true"

    def _listed(self, listing: Any) -> Snapshot:
        commit = listing["sha"]
        if not COMMIT.fullmatch(commit):
            raise ValueError(f"commit {commit!r}")
        files = {}
        for item in listing["siblings"]:
            name, large = item["rfilename"], item.get("lfs")
            if "/" not in name:
                digest = large["sha256"] if large else item["blobId"]
                url = f"{self.endpoint}/{self.model}/resolve/{commit}/{quote(name)}"
                files[name] = RemoteFile(name, item["size"], digest, url)
        return Snapshot(self.model, self.storage, commit, files)


class ModelScope(Repository):
    """A repository of ModelScope, over its public HTTP interface."""

    @classmethod
    def of(cls, model: str, revision: str | None, cache: str | None, token: str | None = None) -> ModelScope:
        folder = Path(cache or Environment.here().modelscope_cache or "~/.cache/modelscope").expanduser()
        address = _endpoint(Environment.modelscope_endpoint, "https://modelscope.cn")
        return cls(model, revision or "master", folder, address, token)

    @property
    def storage(self) -> Path:
        return self.cache / "models" / self.model.replace("/", "--")

    @property
    def page(self) -> str:
        return f"{self.endpoint}/models/{self.model}"

    def headers(self) -> Mapping[str, str]:
        token = self.token or Environment.here().modelscope_token.strip()
        # Older parts of the interface know the cookie only.
        return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}

    def cached(self) -> Path | None:
        here, needed = self.storage / "snapshots" / self.revision, (NeededFiles(weights=False), NeededAdapterFiles())
        folders = (folder for folder in (here, *self._older) if any(kind.lacking(folder) is None for kind in needed))
        return next(folders, None)

    def refusal(self, refused: HubRefused) -> TilewiseError:
        if refused.status == 404:
            return UnknownModel(
                f"{self.model}: {self.endpoint} knows no such model, or no revision {self.revision!r} of it. Check "
                f"the spelling on {self.page}; ids may differ from those of Hugging Face ({refused})."
            )
        if refused.status in (401, 403):
            return DownloadFailed(
                f"{self.model} is private or needs its terms accepted: see {self.page}, and set MODELSCOPE_API_TOKEN "
                f"({refused})."
            )
        return DownloadFailed(f"{self.model} cannot be downloaded: {refused}. Check MODELSCOPE_ENDPOINT and proxies.")

    @property
    def _api(self) -> str:
        return f"{self.endpoint}/api/v1/models/{self.model}"

    @property
    def _listing(self) -> str:
        return f"{self._api}/repo/files?{urlencode({'Revision': self.revision, 'Recursive': False})}"

    @property
    def _older(self) -> tuple[Path, ...]:
        """Folders in which ModelScope's tools kept models before version 1.38."""
        owner, name = self.model.split("/")
        flat = Path(owner, name.replace(".", "___"))
        return (self.cache / "models" / flat, self.cache / "hub" / "models" / flat, self.cache / flat)

    def _listed(self, listing: Any) -> Snapshot:
        if not listing["Success"]:
            raise HubRefused(self._listing, 404, message=listing.get("Message", ""))
        files = {}
        for item in listing["Data"]["Files"] or []:
            if item["Type"] == "blob" and "/" not in item["Path"]:
                url = f"{self._api}/repo?{urlencode({'Revision': self.revision, 'FilePath': item['Path']})}"
                files[item["Path"]] = RemoteFile(item["Path"], item["Size"], item["Sha256"], url)
        if not files:  # which is how it answers for a revision that does not exist
            raise UnknownModel(f"{self.model} has no revision {self.revision!r}, or it is empty: see {self.page}.")
        return Snapshot(self.model, self.storage, self.revision, files, self._older)


def _endpoint(variable: Variable[str], default: str) -> str:
    """Return the address of a hub, or of the mirror that an environment variable names. Raises InvalidConfig."""
    value = (variable.value(os.environ) or default).rstrip("/")
    if not value.startswith(("https://", "http://")):
        raise InvalidConfig(f"{variable.name}={value!r} must start with https:// or http://.")
    return value
