"""Facts that tests read: the names of vLLM's flags, variables and keywords, as its released packages have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VERSIONS = ("0.33", "0.10")


def names_of_vllm(version: str, section: str) -> dict[str, dict[str, Any]]:
    """The entries of a section, such as "serve", "LLM" or "environment": kind, choices, default and short forms."""
    found: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name(f"vllm-{version}.json").read_text())[section]
    return found
