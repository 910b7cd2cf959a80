"""One revision of a repository, as the hub lists it and as the cache holds it.

Bytes are kept once, in `blobs/<digest>`; `snapshots/<revision>/<name>` links to them. That is Hugging Face's own
layout, so its tools and ours share a cache; ModelScope's tools look for names in the same place and follow links.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewise.errors import DownloadFailed

_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file at the root of a repository, as the hub lists it."""

    name: str
    size: int
    digest: str
    """Hexadecimal: SHA-256 of the content (64 digits), or git's SHA-1 of a blob (40)."""
    url: str

    def __post_init__(self) -> None:
        # Names and digests become paths below the cache.
        if Path(self.name).name != self.name or not _DIGEST.fullmatch(self.digest) or self.size < 0:
            raise ValueError(f"{self.name!r} of {self.size} bytes with digest {self.digest!r}")

    def is_at(self, path: Path) -> bool:
        """True if the file at `path` holds these very bytes; it is read whole if its size is right."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        with path.open("rb") as content:
            return hashlib.file_digest(content, self._hash).hexdigest() == self.digest

    def _hash(self) -> Any:
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


@dataclass(frozen=True)
class Snapshot:
    """The files of one revision and their places in the cache."""

    model: str
    storage: Path
    """The repository's folder in the cache."""
    revision: str
    """Name of the folder of links: a commit, or the branch or tag where the hub gives no commit."""
    files: Mapping[str, RemoteFile]
    older: tuple[Path, ...] = ()
    """Folders where earlier tools may have put the same files."""

    @property
    def folder(self) -> Path:
        return self.storage / "snapshots" / self.revision

    @property
    def blobs(self) -> Path:
        return self.storage / "blobs"

    def partial(self, file: RemoteFile) -> Path:
        """Return the path where a file grows; what a broken download left there is continued."""
        return self.blobs / f"{file.digest}.incomplete"

    def holds(self, file: RemoteFile) -> bool:
        """True if the file's name links to these bytes."""
        link = self.folder / file.name
        return link.is_symlink() and link.readlink().name == file.digest and link.is_file()

    def adopt(self, file: RemoteFile) -> bool:
        """Use bytes that this disk has already: another revision's, or those of a tool that does not link."""
        blob = self.blobs / file.digest
        if not (blob.is_file() and blob.stat().st_size == file.size):
            places = (folder / file.name for folder in (self.folder, *self.older))
            found = next((path for path in places if file.is_at(path)), None)
            if found is None:
                return False
            try:
                os.link(found.resolve(), blob)
            except OSError:  # another file system, or one without hard links: fetch it
                return False
        self._link(file)
        return True

    def keep(self, file: RemoteFile) -> None:
        """Check a partial file that has its full size, and give it its name. Raises DownloadFailed for other bytes."""
        partial = self.partial(file)
        if not file.is_at(partial):
            partial.unlink()
            raise DownloadFailed(
                f"{self.model}: {file.name} arrived with {file.size} bytes as listed, but they are not those whose "
                f"digest is {file.digest}. They were deleted; try again."
            )
        partial.replace(self.blobs / file.digest)
        self._link(file)

    def _link(self, file: RemoteFile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / f".{file.name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(self.blobs / file.digest, self.folder))
        fresh.replace(self.folder / file.name)
