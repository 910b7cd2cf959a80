"""Virtual environments of other projects' clients, and of libraries that write checkpoints: one for each, since their
requirements exclude each other's.

`python -m tests.clients.environments` makes those that are missing or have other requirements than are listed here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".venv-clients"
PYTEST = "pytest>=8.0"
"""Each program in `programs` is a file of tests, which the client's own interpreter runs."""
TORCH = "torch>=2.11,<2.14"
"""As in pyproject.toml: where that has brought a build for processors, this brings the same."""
CLIENTS: dict[str, Sequence[str]] = {
    "openai": ("openai>=3.50",),
    "langchain": ("langchain-openai>=1.7", "langchain>=1.5"),
    "litellm": ("litellm>=1.90",),
    "pydantic_ai": ("pydantic-ai-slim[openai]>=2.60",),
    "instructor": ("instructor>=1.17",),
    "llama_index": ("llama-index-llms-openai-like>=0.8",),
    "smolagents": ("smolagents[openai]>=1.26",),
    "vlmeval": (
        "numpy",
        "pandas",
        "pillow",
        "requests",
        "validators",
        "sty",
        "huggingface_hub",
        "filelock",
        "openpyxl",
    ),
    "aiperf": ("aiperf>=0.13",),
    "guidellm": ("guidellm[vision]>=0.8", TORCH),
    "evalscope": ("evalscope[perf]>=1.14",),
}
WRITERS: dict[str, Sequence[str]] = {
    "compressed_tensors": ("compressed-tensors>=0.20", TORCH),
    "auto_round": ("auto-round>=0.16", TORCH),
    "modelslim": ("msmodelslim==26.1.0", "transformers==4.57.6", "pillow", TORCH),
}
"""Of quantised checkpoints; `tests/weights/quantization` has a program for each."""
ALONE: dict[str, Sequence[str]] = {"vlmeval": ("ms-vlmeval>=0.0.20",), "modelslim": ("torchvision>=0.28",)}
"""Packages without what they require: of that, the programs need only what stands above."""


def python(client: str) -> Path:
    return FOLDER / client / "bin" / "python"


def failure(client: str) -> str | None:
    """What pip said when it could not install the client; None where its environment is as listed."""
    stamp = FOLDER / client / "installed"
    if stamp.exists() and stamp.read_text() == _stamp(client):
        return None
    log = FOLDER / f"{client}.log"
    return log.read_text() if log.exists() else "`make test-clients` makes its environment."


def _stamp(client: str) -> str:
    required = (*(CLIENTS | WRITERS)[client], *ALONE.get(client, ()), PYTEST, sys.version)
    return hashlib.sha256("\n".join(required).encode()).hexdigest()


def install(client: str) -> bool:
    """Makes the client's environment anew unless it is as listed; what pip prints goes into a file beside it."""
    if failure(client) is None:
        return True
    FOLDER.mkdir(exist_ok=True)
    made = [sys.executable, "-m", "venv", "--clear", str(FOLDER / client)]
    pip = [str(python(client)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = [made, [*pip, *(CLIENTS | WRITERS)[client], PYTEST]]
    if alone := ALONE.get(client):
        commands.append([*pip, "--no-deps", *alone])
    with (FOLDER / f"{client}.log").open("w") as log:
        for command in commands:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
                return False
    (FOLDER / client / "installed").write_text(_stamp(client))
    return True


def main() -> int:
    """A client that could not be installed is printed with the end of pip's output; its tests fail afterwards."""
    for client in CLIENTS | WRITERS:
        if not install(client):
            last = (FOLDER / f"{client}.log").read_text().strip().splitlines()[-1:]
            print(f"{client} could not be installed: {' '.join(last)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
