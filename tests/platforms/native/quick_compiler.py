"""GCC without optimisation, which keeps what it has compiled: the same text with the same flags is compiled once.

usage: quick_compiler.py FOLDER COMPILER ARGUMENT ...
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main(kept: Path, compiler: str, arguments: list[str]) -> int:
    if "-c" not in arguments:
        return subprocess.run([compiler, *arguments]).returncode
    output = Path(arguments[arguments.index("-o") + 1])
    others = [argument for argument in arguments if argument not in ("-c", "-o", str(output))]
    text = subprocess.run([compiler, *others, "-E", "-P"], check=True, stdout=subprocess.PIPE).stdout
    flags = [argument for argument in others if not argument.startswith(("-D", "-U")) and not argument.endswith(".cpp")]
    known = kept / hashlib.blake2b(repr(flags).encode() + text, digest_size=16).hexdigest()
    if not known.exists():
        if status := subprocess.run([compiler, *arguments, "-O0"]).returncode:
            return status
        _put(output, known)
    shutil.copy(known, output)
    return 0


def _put(made: Path, known: Path) -> None:
    """Copy under another name first: someone else may look for the file at the same moment."""
    with tempfile.NamedTemporaryFile(dir=known.parent, delete=False) as file:
        file.write(made.read_bytes())
    Path(file.name).replace(known)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
