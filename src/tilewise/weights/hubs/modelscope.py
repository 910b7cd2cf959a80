"""ModelScope, over its public HTTP interface.

Its own package is not used: it needs cryptography and requests, reads its login with pickle, and prints progress bars
whether or not anybody looks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tilewise.errors import DownloadFailed, TilewiseError, UnknownModel
from tilewise.weights.hubs.repository import checked_revision, endpoint
from tilewise.weights.hubs.required_files import lacking
from tilewise.weights.hubs.snapshot import RemoteFile, Snapshot
from tilewise.weights.hubs.web import HubRefused, Web


@dataclass(frozen=True)
class ModelScope:
    model: str
    revision: str
    cache: Path
    endpoint: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: str, revision: str | None, cache: str | None, token: str | None = None) -> ModelScope:
        folder = Path(cache or os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
        address = endpoint("MODELSCOPE_ENDPOINT", "https://modelscope.cn")
        return cls(model, checked_revision(model, revision or "master"), folder, address, token)

    @property
    def storage(self) -> Path:
        return self.cache / "models" / self.model.replace("/", "--")

    @property
    def page(self) -> str:
        return f"{self.endpoint}/models/{self.model}"

    def headers(self) -> Mapping[str, str]:
        token = self.token or os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
        # Older parts of the interface know the cookie only.
        return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}

    def cached(self) -> Path | None:
        here = self.storage / "snapshots" / self.revision
        return next((folder for folder in (here, *self._older) if lacking(folder, weights=False) is None), None)

    def snapshot(self, web: Web, patient: bool) -> Snapshot:
        url = f"{self._api}/repo/files?{urlencode({'Revision': self.revision, 'Recursive': False})}"
        listing = web.json(url, patient)
        try:
            if not listing["Success"]:
                raise HubRefused(url, 404, message=listing.get("Message", ""))
            entries = [item for item in listing["Data"]["Files"] or [] if item["Type"] == "blob"]
            files = [self._file(item) for item in entries if "/" not in item["Path"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HubRefused(url, 200, message=f"no listing of files: {error!r}") from None
        if not files:  # which is how it answers for a revision that does not exist
            raise UnknownModel(f"{self.model} has no revision {self.revision!r}, or it is empty: see {self.page}.")
        return Snapshot(self.model, self.storage, self.revision, {file.name: file for file in files}, self._older)

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

    def remember(self, snapshot: Snapshot) -> None:
        """Do nothing: the folder is named for the revision."""

    @property
    def _api(self) -> str:
        return f"{self.endpoint}/api/v1/models/{self.model}"

    @property
    def _older(self) -> tuple[Path, ...]:
        """Folders in which ModelScope's tools kept models before version 1.38."""
        owner, name = self.model.split("/")
        flat = Path(owner, name.replace(".", "___"))
        return (self.cache / "models" / flat, self.cache / "hub" / "models" / flat, self.cache / flat)

    def _file(self, item: dict[str, Any]) -> RemoteFile:
        url = f"{self._api}/repo?{urlencode({'Revision': self.revision, 'FilePath': item['Path']})}"
        return RemoteFile(item["Path"], item["Size"], item["Sha256"], url)
