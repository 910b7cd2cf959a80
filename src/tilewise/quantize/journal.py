"""The journal of a quantisation: what it was asked for, and what it has measured so far, beside the files it writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidCheckpoint, InvalidRequest
from tilewise.quantize.shards import DISK_FULL, write_json
from tilewise.weights.files import shard_files
from tilewise.weights.folder import read_json

JOURNAL = "quantize.json"


@dataclass(frozen=True, slots=True)
class LayerError:
    """The relative errors of a rounded layer."""

    weights: float
    """Norm of the change over the norm of the matrix."""
    outputs: float | None = None
    """Norm of the change over the norm of the products with the calibration's activations; None = not measured."""


@dataclass(frozen=True, slots=True)
class NormFactors:
    """The mean and the largest of the smoothing factors by which a norm was divided."""

    mean: float
    largest: float


@dataclass
class Journal:
    """The record of a quantisation, kept in its output folder so that a run goes on where another one was ended."""

    folder: Path
    asked: dict[str, Any]
    """Options and digests that have to be the same for a run to go on."""
    layers: dict[str, LayerError] = field(default_factory=dict)
    norms: dict[str, NormFactors] = field(default_factory=dict)
    finished: bool = False

    @classmethod
    def open(cls, folder: Path, asked: dict[str, Any]) -> Journal:
        """Open the journal of a folder, or begin one.

        Raises InvalidRequest where it was begun with something else `asked`, is damaged, or other files are there.
        """
        check_folder(folder)
        path = folder / JOURNAL
        if not path.exists():
            return cls(folder, asked)
        try:
            found = read_json(path)
            layers = {name: LayerError(*values) for name, values in found.get("layers", {}).items()}
            norms = {name: NormFactors(*values) for name, values in found.get("norms", {}).items()}
            before = dict(found.get("asked", {}))
        except (InvalidCheckpoint, TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(
                f"{path} is damaged ({error}), and no run goes on without it: empty {folder}, or name another folder."
            ) from None
        _check_same(folder, before, asked)
        return cls(folder, asked, layers, norms, found.get("finished") is True)

    def save(self) -> None:
        layers = {name: [error.weights, error.outputs] for name, error in self.layers.items()}
        norms = {name: [factors.mean, factors.largest] for name, factors in self.norms.items()}
        found = {"asked": self.asked, "finished": self.finished, "layers": layers, "norms": norms}
        write_json(self.folder / JOURNAL, found)


def check_folder(folder: Path) -> None:
    """Raise InvalidRequest for a path that is no folder, or a folder with files that no quantisation wrote."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is a file: name a folder that is new or empty.")
    if any(_visible(folder)) and not (folder / JOURNAL).exists():
        raise InvalidRequest(
            f"{folder} is not an empty folder, and has no {JOURNAL}, by which an ended run goes on: empty it, or name "
            "another folder."
        )


def make_folder(folder: Path) -> None:
    """Make the output folder. Raises InvalidRequest where that fails; the OSError of a full disk is passed on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise InvalidRequest(f"{folder} cannot be made ({error.strerror}): name a folder that can.") from None


def source_digest(folder: Path) -> str:
    """Return a digest that tells a checkpoint's files from others: of their names, sizes and times, and the config."""
    found = hashlib.sha256((folder / "config.json").read_bytes())
    for path in shard_files(folder):
        status = path.stat()
        found.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _visible(folder: Path) -> list[Path]:
    """Return what is in a folder, but for the partial file of a run that ended while it wrote its first journal."""
    return [path for path in folder.iterdir() if path.name != f"{JOURNAL}.partial"]


def _check_same(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    other = [name for name in asked if found.get(name) != asked[name]]
    if other:
        differences = ", ".join(f"{name} ({found.get(name)!r:.40}, now {asked[name]!r:.40})" for name in other)
        raise InvalidRequest(
            f"{folder} holds a quantisation that was begun with another {differences}: give the same again to go on "
            "with it, or another folder."
        )
