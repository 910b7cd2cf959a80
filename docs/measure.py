"""Size and shape of the source: `python -m docs.measure [--request] [SOURCE]`.

Printed are files, lines, how long files and functions are, modules that one other imports, class names that stand for
two things, and docstrings that open without a subject. With --request, the demo model is served and asked one question
in text, and the files are counted whose code ran for that, in the server's process and in the engine's.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
PORT = 8971
RIDDLE = re.compile(
    "(Of|What|Whether|How|Where|Which|As|By|In|For|From|With|Without|That|Those|They|The same|Such|Its|Their|Not|To)\\b"
)
"""How a docstring begins that leans on the name above it."""
RECORDER = """
import json, os, signal, sys, threading
seen = set()
def note(frame, event, argument):
    seen.add(frame.f_code.co_filename)
def told(number, frame):
    with open(os.path.join(os.environ["MEASURED"], f"{os.getpid()}.json"), "w") as file:
        json.dump(sorted(seen), file)
    seen.clear()
open(os.path.join(os.environ["MEASURED"], f"{os.getpid()}.pid"), "w").close()
signal.signal(signal.SIGUSR1, told)
sys.setprofile(note)
threading.setprofile(note)
"""
"""A `sitecustomize` with which a process writes down, when told so, the files whose code ran since the last time."""


class Module:
    """One file of the source, parsed."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path.relative_to(source)
        self.name = ".".join(("tilewise", *self.path.with_suffix("").parts)).removesuffix(".__init__")
        text = path.read_text()
        self.lines = len(text.splitlines())
        self.tree = ast.parse(text)

    @property
    def functions(self) -> Iterator[int]:
        """Lines of each."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.end_lineno or node.lineno) - node.lineno + 1

    @property
    def docstrings(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield node.value.value.strip()

    @property
    def classes(self) -> list[str]:
        return [node.name for node in self.tree.body if isinstance(node, ast.ClassDef)]

    def imports(self, names: set[str]) -> set[str]:
        """Return those of the names that the module imports, wherever in its file."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                found |= {f"{node.module}.{alias.name}" for alias in node.names} & names or {node.module} & names
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & names
        return found


def shape(modules: Sequence[Module]) -> Iterator[tuple[str, str]]:
    """Rows of the table."""
    lines, functions = [module.lines for module in modules], [size for module in modules for size in module.functions]
    docstrings = [text for module in modules for text in module.docstrings]
    yield "files; lines", f"{len(modules)}; {sum(lines):,}"
    yield "lines of a file, median; 95 %; most", spread(lines)
    yield "files under 40 lines", str(sum(size < 40 for size in lines))
    yield "functions; lines of one, median; 95 %; most", f"{len(functions):,}; {spread(functions)}"
    names = {module.name for module in modules}
    importers = Counter(name for module in modules for name in module.imports(names) if name != module.name)
    yield "modules that one other imports", str(sum(count == 1 for count in importers.values()))
    yield (
        "docstrings; without a subject",
        f"{len(docstrings):,}; {sum(bool(RIDDLE.match(text)) for text in docstrings)}",
    )
    places = defaultdict(list)
    for module in modules:
        for name in module.classes:
            places[name].append(str(module.path))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    yield "class names that stand for two things", ", ".join(sorted(twice)) or "none"


def spread(sizes: Sequence[int]) -> str:
    ordered = sorted(sizes)
    return f"{statistics.median(ordered):g}; {ordered[int(0.95 * len(ordered))]}; {ordered[-1]}"


def files_of_a_request(source: Path) -> list[Path]:
    """Files of the source whose code runs between a question and its answer, in a server that has answered before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(RECORDER)
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{source.parent}", "MEASURED": name}
        command = [sys.executable, "-m", "tilewise", "serve", "demo", "--port", str(PORT)]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client = httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120)
            wait_for(client)
            ask(client)
            seen_since(folder)
            ask(client)
            seen = seen_since(folder)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    return sorted(Path(file) for file in seen if Path(file).is_relative_to(source))


def seen_since(folder: Path) -> set[str]:
    """Have all processes write down what ran since the last call."""
    for process in folder.glob("*.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(process.stem), signal.SIGUSR1)
    time.sleep(1)
    return {name for file in folder.glob("*.json") for name in json.loads(file.read_text())}


def wait_for(client: httpx.Client) -> None:
    for _ in range(600):
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("The server has not begun to answer.")


def ask(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "stream": True}
    assert client.post("/v1/chat/completions", json=body).status_code == 200


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m docs.measure", description=__doc__.split("\n\n")[1])
    parser.add_argument("source", nargs="?", type=Path, default=ROOT / "src" / "tilewise", help="folder of the package")
    parser.add_argument("--request", action="store_true", help="also serve the demo model, and ask it")
    args = parser.parse_args()
    source = args.source.resolve()
    for name, value in shape([Module(path, source) for path in sorted(source.rglob("*.py"))]):
        print(f"{name:<46} {value}")
    if args.request:
        files = files_of_a_request(source)
        lines = sum(len(file.read_text().splitlines()) for file in files)
        print(f"{'files whose code runs for a request; lines':<46} {len(files)}; {lines:,}")
        for file in files:
            print(f"  {file.relative_to(source)}")


if __name__ == "__main__":
    main()
