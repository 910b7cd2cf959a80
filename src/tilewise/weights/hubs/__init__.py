"""Downloads of a hub's repository into a folder of the cache: what is there is used, what is missing is fetched,
several files at once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path

from filelock import FileLock

from tilewise.console import progress_bar
from tilewise.environment import Environment
from tilewise.errors import DownloadFailed, TilewiseError
from tilewise.weights.file_names import CONFIG, NeededFiles, is_small
from tilewise.weights.hubs.repository import COMMIT, Repository
from tilewise.weights.hubs.snapshot import RemoteFile, Snapshot
from tilewise.weights.hubs.web import HubRefused, HubUnreachable, Web

_AT_ONCE = 4
logger = logging.getLogger("tilewise")


def download(repository: Repository, needed: NeededFiles) -> Path:
    """Return the folder with all needed files, and fetch those that are missing.

    Nothing is asked of the network in offline mode, or if a commit is all here. If the hub does not answer, an earlier
    download is used, with a warning.
    """
    offline = Environment.here().offline  # HF_HUB_OFFLINE counts for both hubs, as it does in vLLM
    folder = repository.cached()
    lacks = None if folder is None else needed.lacking(folder)
    whole = folder is not None and lacks is None
    if folder is not None and whole and (offline or COMMIT.fullmatch(repository.revision)):
        return folder
    if offline:
        raise _not_here(repository, lacks)
    with closing(Web(repository.headers())) as web:
        try:
            snapshot = repository.snapshot(web, patient=not whole)
        except (HubRefused, HubUnreachable) as error:
            if folder is None or not whole:
                raise _failed(repository, error) from None
            logger.warning("%s is used as last downloaded, in %s: %s.", repository.model, folder, error)
            return folder
        try:
            _complete(web, snapshot, needed)
            repository.remember(snapshot)
        except (HubRefused, HubUnreachable, OSError) as error:
            raise _failed(repository, error) from None
    return snapshot.folder


def _complete(web: Web, snapshot: Snapshot, needed: NeededFiles) -> None:
    """Fetch small files, of them the config last, so that a folder with a config lacks none; then the weights."""
    needed.check(snapshot.model, snapshot.files)
    small = [name for name in snapshot.files if is_small(name)]
    _fetch(web, snapshot, [name for name in small if name != CONFIG])
    _fetch(web, snapshot, [name for name in small if name == CONFIG])
    _fetch(web, snapshot, needed.weight_files(snapshot.model, snapshot.files, snapshot.folder))


def _fetch(web: Web, snapshot: Snapshot, names: Iterable[str]) -> None:
    files = [snapshot.files[name] for name in names]
    if all(snapshot.holds(file) for file in files):
        return
    snapshot.blobs.mkdir(parents=True, exist_ok=True)
    with FileLock(snapshot.storage / ".lock"):  # another process may be at it
        missing = [file for file in files if not (snapshot.holds(file) or snapshot.adopt(file))]
        if missing:
            _check_space(snapshot, missing)
            _fetch_all(web, snapshot, missing)


def _fetch_all(web: Web, snapshot: Snapshot, files: list[RemoteFile]) -> None:
    logger.info("Downloading %s to %s", ", ".join(file.name for file in files), snapshot.folder)
    title, total = f"Downloading {snapshot.model}", sum(file.size for file in files)
    with progress_bar(title, total, of_bytes=True) as advance, ThreadPoolExecutor(_AT_ONCE) as pool:

        def fetch(file: RemoteFile) -> None:
            web.fetch(file, snapshot.partial(file), advance)
            snapshot.keep(file)

        try:  # around `submit` too: leaving the pool waits for every thread that nobody has told to stop
            for future in as_completed([pool.submit(fetch, file) for file in files]):
                future.result()
        except BaseException:  # Ctrl-C too: what has arrived stays for next time
            web.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _check_space(snapshot: Snapshot, files: list[RemoteFile]) -> None:
    partials = [snapshot.partial(file) for file in files]
    needed = sum(file.size for file in files) - sum(path.stat().st_size for path in partials if path.is_file())
    free = shutil.disk_usage(snapshot.blobs).free
    if needed > free:
        raise DownloadFailed(
            f"{snapshot.model} needs {needed / 2**30:.1f} GiB more in {snapshot.storage}, where {free / 2**30:.1f} GiB "
            "are free. Free some, or choose another folder with --download-dir."
        )


def _failed(repository: Repository, error: HubRefused | HubUnreachable | OSError) -> TilewiseError:
    if isinstance(error, HubRefused):
        return repository.refusal(error)
    if isinstance(error, HubUnreachable):
        return DownloadFailed(
            f"{repository.model} cannot be downloaded: {error}. What has arrived is kept, and the next run goes on "
            "from there. Without a network give a local folder with the model, or --download-dir (download_dir in "
            "Python) a cache that has it; HF_ENDPOINT names a mirror of Hugging Face, --hub modelscope is another hub."
        )
    return DownloadFailed(
        f"{repository.model} cannot be written to {repository.storage}: {error.strerror or error}. Make room or give "
        "access, or choose another folder with --download-dir."
    )


def _not_here(repository: Repository, lacks: str | None) -> DownloadFailed:
    what = "nothing of it is" if lacks is None else f"{lacks} is not"
    return DownloadFailed(
        f"{repository.model} (revision {repository.revision}) cannot be downloaded: HF_HUB_OFFLINE is set, and {what} "
        f"in {repository.storage}. Unset it once to download, or give a local folder."
    )
