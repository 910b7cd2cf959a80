"""The engine's process of `tilewise encode-server`: the tower alone."""

from __future__ import annotations

import time

from tilewise.engine.encode_core import EncodeCore
from tilewise.remote.wire import Core, Launch, Ready


def build_encoding(launch: Launch) -> tuple[Core, Ready]:
    """Raises the errors of `build_tower`."""
    started = time.perf_counter()
    from tilewise.runner.tower import build_tower, cache_bytes  # as in `process.build`

    imported = time.perf_counter()
    tower, resolved = build_tower(launch.config, launch.model)
    seconds = {"imports": imported - started, "model": time.perf_counter() - imported}
    return EncodeCore(tower, cache_bytes(launch.config)), Ready(resolved, seconds)
