"""Looks up what an environment has installed in a database of known weaknesses, and exits with 1 if it has any.

pip-audit asks, from an environment of its own (requirements-audit.txt). Where its database cannot be reached nothing is
known: that is said, and the exit status is 2.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_LOCAL = re.compile(r"^([^=\s]+==[^+\s]+)\+\S+", re.MULTILINE)  # builds of the same source, which no database lists
ALLOWED: dict[str, str] = {}
"""Weaknesses that cannot be used here, by their ids, each with the reason."""


def main() -> int:
    installed = Path(sys.argv[1]).read_text(encoding="utf-8")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.write(_LOCAL.sub(r"\1", installed))
        listed.flush()
        ignored = [word for name in ALLOWED for word in ("--ignore-vuln", name)]
        asked = [sys.executable, "-m", "pip_audit", "--requirement", listed.name, "--no-deps", "--disable-pip"]
        done = subprocess.run(
            [*asked, "--format", "json", "--progress-spinner", "off", *ignored], capture_output=True, text=True
        )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        print(f"Nothing is known of what is installed: pip-audit could not ask its database ({said[0][:200]}).")
        print("Run `make audit` where the network lets it, or let the workflow `audit` do so.")
        return 2
    return int(_report(packages))


def _report(packages: list[dict[str, Any]]) -> bool:
    """Print what was found, and return whether any package is weak."""
    weak = [(package, weakness) for package in packages for weakness in package.get("vulns", ())]
    for package, weakness in weak:
        fixed = ", ".join(weakness["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {weakness['id']}, mended in {fixed}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    print(f"{len(packages) - len(skipped)} packages were looked up, {len(weak)} weaknesses found.")
    if skipped:
        print(f"Not known to the database: {', '.join(skipped)}")
    return bool(weak)


if __name__ == "__main__":
    sys.exit(main())
