"""The house: imports point down, no torch above the runner, devices only in platforms, no circles."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "tilewise"

# Each row may import from its own and from rows below it.
ROWS: list[set[str]] = [
    {"cli", "deploy", "__main__"},
    {"services", "jobs", "evals", "bench", "doctor"},
    {"server"},
    {"ui", "entrypoints", "assets", "twin", "quantize", "capacity"},
    {"remote"},
    {"outputs"},
    {"inputs"},
    {"engine"},
    {"runner"},
    {"models"},
    {"layers"},
    {"weights"},
    {"parallel"},
    {"platforms"},
    {"plan"},
    {"step"},
    {"config", "speculation", "types", "sampling_params", "structured_outputs"},
    {"units", "layout", "timing", "sse", "chat_server", "ray_cluster", "resize", "ignored", "option", "foreign"}
    | {"console", "host", "environment", "eval_options"},
    {"errors"},
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
WITH_TORCH = {"quantize", "capacity", "twin", "runner", "models", "layers", "weights", "parallel", "platforms"}
TORCH_FREE = LEVEL.keys() - WITH_TORCH
# The JSON of a checkpoint folder and the hub are plain Python, which the inputs may read.
TORCH_FREE_FILES = {f"weights/{name}.py" for name in ("__init__", "checkpoint", "family", "folder", "file_names")} | {
    str(path.relative_to(SRC)) for folder in ("hubs", "gguf") for path in (SRC / "weights" / folder).glob("*.py")
}


def modules() -> list[Path]:
    return sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


def unit_of(path: Path) -> str:
    relative = path.relative_to(SRC)
    return relative.parts[0].removesuffix(".py")


@cache
def imports_of(path: Path, at_import_time: bool = False) -> set[str]:
    """Dotted names that a file imports; optionally only those that run when the file is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_import_time(tree)) if at_import_time else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _import_time(node: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or guarded:
            continue
        found += [child, *_import_time(child)]
    return found


def ours(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("tilewise.")}


def test_imports_point_down():
    assert {unit_of(path) for path in modules()} <= LEVEL.keys(), "a folder or file has no row in the house"
    above = [
        f"{path.relative_to(SRC)} imports {target} above it"
        for path in modules()
        for target in ours(imports_of(path))
        if LEVEL.get(target, -1) < LEVEL[unit_of(path)] and target != "__version__"
    ]
    assert above == []


def torch_free() -> list[Path]:
    return [path for path in modules() if unit_of(path) in TORCH_FREE or str(path.relative_to(SRC)) in TORCH_FREE_FILES]


def test_no_torch_above_the_runner():
    assert len(torch_free()) > 100
    assert [
        f"{path.relative_to(SRC)} imports {name}"
        for path in torch_free()
        for name in imports_of(path)
        if name == "torch" or name.startswith("torch.")
    ] == []


def test_only_platforms_name_a_device_family():
    for path in modules():
        if unit_of(path) != "platforms":
            text = path.read_text(encoding="utf-8")
            assert "torch.cuda" not in text, path
            assert "torch.npu" not in text, path


def module_of(path: Path) -> str:
    """Its dotted name; a package goes by its folder, as imports name it."""
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """What each module loads when it is imported. Importing a.b.c runs a and a.b first, unless they are under way."""
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for target in imports_of(path, at_import_time=True):
            steps = target.split(".")
            loaded = {".".join(steps[:count]) for count in range(2, len(steps) + 1)} & files.keys()
            graph[name] |= {module for module in loaded if module != name and not name.startswith(f"{module}.")}
    return graph


def find_circle(graph: dict[str, set[str]]) -> str:
    """Modules on one circle as `a -> b -> a`, or an empty text."""
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> str:
        if name in trail:
            return " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return ""
        found = next(filter(None, (visit(target, (*trail, name)) for target in sorted(graph[name]))), "")
        done.add(name)
        return found

    return next(filter(None, (visit(name, ()) for name in sorted(graph))), "")


def test_no_circles():
    assert find_circle(import_graph({module_of(path): path for path in modules()})) == ""


def test_circles_through_a_package_are_found(tmp_path):
    """pack/__init__ loads pack.inner, which loads outside, which loads pack again."""
    texts = {
        "tilewise.pack": "from tilewise.pack.inner import one",
        "tilewise.pack.inner": "import tilewise.outside",
        "tilewise.outside": "from tilewise.pack import one",
    }
    files = {}
    for name, text in texts.items():
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(text)
    assert (
        find_circle(import_graph(files))
        == "tilewise.outside -> tilewise.pack -> tilewise.pack.inner -> tilewise.outside"
    )


@pytest.mark.parametrize(
    "statement",
    [
        "from tilewise.entrypoints import async_llm, llm, llm_engine, media_tools",
        "import tilewise.assets",
        "import tilewise.cli",
        "from tilewise import SamplingParams",
        "import tilewise.evals.spot, tilewise.evals.comparison",
        "import tilewise.weights.checkpoint, tilewise.weights.hubs, tilewise.weights.hubs.repository",
    ],
)
def test_importing_the_front_does_not_load_torch(statement):
    code = f"{statement}\nimport sys\nsys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_file_that_is_no_module_is_part_of_the_package():
    """A wheel has what pyproject.toml names; an editable installation would hide one that is missing."""
    settings = tomllib.loads((SRC.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["tilewise"]
    packed = {path for pattern in patterns for path in SRC.glob(pattern)}
    data = {
        path for path in SRC.rglob("*") if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert data == packed & data, sorted(str(path.relative_to(SRC)) for path in data - packed)
