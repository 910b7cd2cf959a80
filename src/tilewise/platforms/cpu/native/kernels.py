"""All kernels of a shared object, and which of them must not be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native.attention import AttentionKernels
from tilewise.platforms.cpu.native.library import Library
from tilewise.platforms.cpu.native.matrices import MatrixKernels
from tilewise.platforms.cpu.native.rows import RowKernels


@dataclass(frozen=True, slots=True)
class Native:
    """One that is named in `left_out` was wrong when it was tried."""

    path: Path
    library: Library
    rows: RowKernels
    attention: AttentionKernels
    matrices: MatrixKernels
    compiler: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, compiler: str = "", left_out: Mapping[str, str] | None = None) -> Native:
        try:
            library = Library(path)
        except OSError as error:
            raise NoKernels(f"built kernels could not be loaded: {error}") from error
        kernels = RowKernels(library), AttentionKernels(library), MatrixKernels(library)
        return cls(path, library, *kernels, compiler, left_out or {})
