"""Turns options and facts into sizes: every choice is made here once, before a weight is read, and has its reason."""

from tilewise.plan.facts import DeviceFacts, LargestStep, ModelFacts, largest, with_draft, with_vision_workers
from tilewise.plan.memory import MemoryPlan
from tilewise.plan.resolve import Resolved, planned_memory, resolve

__all__ = [
    "DeviceFacts",
    "LargestStep",
    "MemoryPlan",
    "ModelFacts",
    "Resolved",
    "largest",
    "planned_memory",
    "resolve",
    "with_draft",
    "with_vision_workers",
]
