"""From wishes and facts to sizes: every choice is made here once, before a weight is read, and each has its reason."""

from tilewise.plan.facts import DeviceFacts, LargestStep, ModelFacts, largest, with_draft
from tilewise.plan.resolve import Resolved, resolve

__all__ = ["DeviceFacts", "LargestStep", "ModelFacts", "Resolved", "largest", "resolve", "with_draft"]
