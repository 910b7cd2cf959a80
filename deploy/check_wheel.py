"""Checks a wheel by the Python that it is installed for: what it holds, the demo, and a server with an answer.

It is called by `make test-wheel` with the path of the wheel, and works in an empty folder without PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
TILEWISE = str(Path(sys.executable).with_name("tilewise"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def main() -> int:
    _compare(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        where = subprocess.check_output(
            [sys.executable, "-c", "import tilewise; print(tilewise.__file__)"], env=ENVIRONMENT, text=True
        )
        assert "site-packages" in where, f"tilewise comes from {where}"
        subprocess.run([TILEWISE, "demo"], env=ENVIRONMENT, check=True)
        _serve()
    return 0


def _compare(wheel: Path) -> None:
    """Hold the files of the wheel against those of the package's folder."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("tilewise/")}
    package = {
        str(path.relative_to(SOURCE))
        for path in (SOURCE / "tilewise").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == package, f"the wheel lacks {sorted(package - held)}, and has besides {sorted(held - package)}"
    print(f"{wheel.name}: all {len(held)} files of the package")


def _serve() -> None:
    command = [TILEWISE, "serve", "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        log = []
        for line in server.stdout:
            log.append(line)
            if found := re.search(r"Uvicorn running on (\S+)", line):
                print(f"tilewise serve: {_ask(found[1])!r}")
                return
        raise AssertionError("".join(log))
    finally:
        server.terminate()
        server.wait(60)


def _ask(url: str) -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=300) as answer:
        content: str = json.load(answer)["choices"][0]["message"]["content"]
    assert content
    return content


if __name__ == "__main__":
    sys.exit(main())
