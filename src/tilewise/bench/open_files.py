"""Every request under way is an open file, and systems allow a program about a thousand unless it asks for more."""

from __future__ import annotations

import resource

_WANTED = 65536


def allow_many_open_files() -> None:
    """As many as the system lets a program ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
