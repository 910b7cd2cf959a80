"""Hugging Face, or a mirror of it.

Token, cache folder and layout are huggingface_hub's. The bytes are fetched here: its own downloads throw a partial file
away when the process ends, and begin again at the first byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tilewise.errors import DownloadFailed, TilewiseError, UnknownModel
from tilewise.weights.hubs.repository import COMMIT, checked_revision, endpoint
from tilewise.weights.hubs.snapshot import RemoteFile, Snapshot
from tilewise.weights.hubs.web import HubRefused, Web


@dataclass(frozen=True)
class HuggingFace:
    model: str
    revision: str
    cache: Path
    endpoint: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: str, revision: str | None, cache: str | None, token: str | None = None) -> HuggingFace:
        from huggingface_hub import constants

        folder = Path(cache or constants.HF_HUB_CACHE).expanduser()
        address = endpoint("HF_ENDPOINT", constants.ENDPOINT)
        return cls(model, checked_revision(model, revision or "main"), folder, address, token)

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

    def snapshot(self, web: Web, patient: bool) -> Snapshot:
        url = f"{self.endpoint}/api/models/{self.model}/revision/{quote(self.revision, safe='')}?blobs=true"
        listing = web.json(url, patient)
        try:
            commit = listing["sha"]
            if not COMMIT.fullmatch(commit):
                raise ValueError(f"commit {commit!r}")
            files = [self._file(item, commit) for item in listing["siblings"] if "/" not in item["rfilename"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HubRefused(url, 200, message=f"no listing of files: {error!r}") from None
        return Snapshot(self.model, self.storage, commit, {file.name: file for file in files})

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

    def remember(self, snapshot: Snapshot) -> None:
        if self.cached() != snapshot.folder:
            self._ref.parent.mkdir(parents=True, exist_ok=True)
            self._ref.write_text(snapshot.revision, encoding="utf-8")

    @property
    def _ref(self) -> Path:
        return self.storage / "refs" / self.revision

    def _file(self, item: dict[str, Any], commit: str) -> RemoteFile:
        name, large = item["rfilename"], item.get("lfs")
        digest = large["sha256"] if large else item["blobId"]
        url = f"{self.endpoint}/{self.model}/resolve/{commit}/{quote(name)}"
        return RemoteFile(name, item["size"], digest, url)
