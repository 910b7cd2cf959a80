"""An engine that ends when it is asked one thing."""

from __future__ import annotations

import os

from tilewise.engine.core import EngineCore
from tilewise.remote import process
from tilewise.remote.wire import Launch, Ready
from tilewise.types import Request

WORD = "poison"


def build(launch: Launch) -> tuple[EngineCore, Ready]:
    core, ready = process.build(launch)
    submit = core.submit

    def submit_or_end(request: Request) -> None:
        if WORD in (request.prompt or ""):
            os._exit(3)
        submit(request)

    core.submit = submit_or_end  # type: ignore[method-assign]
    return core, ready
