"""All targets: importing this module adds each of them to `TARGETS`."""

from tests.fuzz import answers, bodies, checkpoints, media, plans
from tests.fuzz.target import TARGETS

__all__ = ["TARGETS", "answers", "bodies", "checkpoints", "media", "plans"]
