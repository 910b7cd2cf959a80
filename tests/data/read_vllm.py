"""Reads the names of vLLM's flags, environment variables and keywords out of a released package, by its syntax trees.

    python -m tests.data.read_vllm vllm-0.33.0-....whl > tests/data/vllm-0.33.json

Nothing of the package is imported or run. What is kept are facts: names, short forms, kinds, choices, simple defaults.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

Entry = dict[str, Any]
_SIMPLE = (bool, int, float, str, type(None))
_BENCH = "vllm/benchmarks/"


class Package:
    """A wheel's modules as trees, and its classes and functions by name."""

    def __init__(self, path: str) -> None:
        archive = zipfile.ZipFile(path)
        wanted = ("engine/arg_utils", "envs", "sampling_params", "config", "entrypoints", "benchmarks")
        self.modules = {
            name: ast.parse(archive.read(name))
            for name in archive.namelist()
            if name.endswith(".py") and any(name.startswith(f"vllm/{part}") for part in wanted)
        }
        self.version = PurePosixPath(path).name.split("-")[1]

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """Configuration classes win over others of the same name."""
        found: dict[str, ast.ClassDef] = {}
        for name in sorted(self.modules, key=lambda name: name.startswith("vllm/config"), reverse=True):
            for node in self.modules[name].body:
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, node)
        return found

    @cached_property
    def literals(self) -> dict[str, ast.expr]:
        """Names that stand for a type, such as `Device = Literal[...]`."""
        found: dict[str, ast.expr] = {}
        for tree in self.modules.values():
            for node in tree.body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    found.setdefault(node.targets[0].id, node.value)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                    found.setdefault(node.target.id, node.value)
        return found

    def module(self, *candidates: str) -> ast.Module:
        return next(self.modules[name] for name in candidates if name in self.modules)

    def fields(self, name: str) -> dict[str, Entry]:
        """Fields of a class and of its bases, kind and default."""
        node, found = self.classes[name], {}
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in self.classes:
                found |= self.fields(base.id)
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                found[item.target.id] = self.kind(item.annotation) | self.default(item.value)
        return {key: value for key, value in found.items() if not key.startswith("_")}

    def kind(self, annotation: ast.expr | None) -> Entry:
        """What a type asks for: switch, whole number, number, text, list, object, and the choices."""
        text = ast.unparse(annotation) if annotation else ""
        choices = list(dict.fromkeys(self._choices(annotation))) if annotation else []
        if text.startswith("InitVar"):
            text = text.removeprefix("InitVar[").removesuffix("]")
        kinds = ("bool", "int", "float", "str") if "dict" not in text.lower() else ()
        kind = next((kind for kind in kinds if kind in text.replace("Optional", "")), None)
        if any(word in text for word in ("list[", "List[", "tuple[", "Sequence[", "set[")) and "dict" not in text:
            kind = "list"
        if choices and kind != "bool":
            kind = "list" if kind == "list" else "str"
        if kind == "bool" and "str" in text:
            return {"kind": "str", "nargs": "?"}
        entry: Entry = {"kind": kind or ("str" if choices else "object")}
        return entry | ({"choices": choices} if choices else {})

    def _choices(self, node: ast.expr, depth: int = 0) -> Iterator[Any]:
        if isinstance(node, ast.Name) and node.id in self.literals and depth < 4:
            yield from self._choices(self.literals[node.id], depth + 1)
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            for part in parts:
                if isinstance(part, ast.Constant):
                    yield part.value
                else:
                    yield from self._choices(part, depth + 1)
        elif isinstance(node, ast.Subscript):
            yield from self._choices(node.slice, depth)
        elif isinstance(node, ast.BinOp):
            yield from (*self._choices(node.left, depth), *self._choices(node.right, depth))
        elif isinstance(node, ast.Tuple):
            for part in node.elts:
                yield from self._choices(part, depth)

    def default(self, value: ast.expr | None) -> Entry:
        """A simple default, looked up where it is another class's field."""
        if isinstance(value, ast.Call) and value.args and ast.unparse(value.func) == "Field":
            return self.default(value.args[0])
        if isinstance(value, ast.Call):
            value = next((word.value for word in value.keywords if word.arg == "default"), None)
        if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id in self.classes:
            return {key: it for key, it in self.fields(value.value.id).get(value.attr, {}).items() if key == "default"}
        try:
            found = ast.literal_eval(value) if value is not None else ...
        except ValueError:
            return {}
        return {"default": found} if isinstance(found, _SIMPLE) else {}


def _functions(node: ast.AST, name: str) -> list[ast.FunctionDef]:
    return [item for item in ast.walk(node) if isinstance(item, ast.FunctionDef) and item.name == name]


def flags_in(package: Package, node: ast.AST) -> dict[str, Entry]:
    """Flags that calls of add_argument add. `**model_kwargs["seed"]` is a field of a configuration class."""
    tables = {
        item.targets[0].id: ast.unparse(item.value.args[0])
        for item in ast.walk(node)
        if isinstance(item, ast.Assign)
        and isinstance(item.targets[0], ast.Name)
        and isinstance(item.value, ast.Call)
        and ast.unparse(item.value.func) in ("get_kwargs", "_compute_kwargs")
    }
    found: dict[str, Entry] = {}
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            names = [item.value for item in call.args if isinstance(item, ast.Constant)]
            for name in (name for name in names if name.startswith("--")):
                shorts = [other for other in names if other != name]
                found[name] = _flag(package, call, tables) | ({"other": shorts} if shorts else {})
    return found


def _flag(package: Package, call: ast.Call, tables: dict[str, str]) -> Entry:
    entry: Entry = {}
    for word in call.keywords:
        inner = word.value
        if word.arg is None:
            source = inner.values[0] if isinstance(inner, ast.Dict) else inner
            if isinstance(source, ast.Subscript) and isinstance(source.slice, ast.Constant):
                cls = tables.get(ast.unparse(source.value))
                entry |= package.fields(cls).get(source.slice.value, {}) if cls in package.classes else {}
        elif word.arg == "action":
            action = ast.unparse(inner).strip("'")
            entry |= {"kind": "list" if action == "append" else "bool"} if "Action" not in action else {"kind": "bool"}
        elif word.arg == "type":
            kind = ast.unparse(inner)
            entry |= {"kind": kind if kind in ("int", "float", "str") else "object"} if "kind" not in entry else {}
        elif word.arg == "nargs":
            entry |= {"nargs": ast.unparse(inner).strip("'")}
        elif word.arg == "choices" and isinstance(inner, ast.List):
            entry |= {"choices": [item.value for item in inner.elts if isinstance(item, ast.Constant)]}
        elif word.arg == "default":
            entry |= package.default(inner)
    return {"kind": "str"} | entry


def keywords_of(package: Package, functions: Iterable[ast.FunctionDef]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for function in functions:
        arguments = function.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
        pairs = [
            *zip(positional, defaults, strict=True),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]
        for argument, default in pairs:
            if argument.arg not in ("self", "cls"):
                found[argument.arg] = package.kind(argument.annotation) | package.default(default)
    return found


def everything(package: Package) -> dict[str, Any]:
    engine = package.classes["EngineArgs"]
    asynchronous = package.classes["AsyncEngineArgs"]
    engine_flags = flags_in(package, engine)
    all_engine = engine_flags | flags_in(package, asynchronous)
    cli = package.module("vllm/entrypoints/common/cli_args.py", "vllm/entrypoints/openai/cli_args.py")
    frontend = {f"--{name.replace('_', '-')}": entry for name, entry in package.fields("FrontendArgs").items()}
    base = package.fields("BaseFrontendArgs" if "BaseFrontendArgs" in package.classes else "FrontendArgs")
    batch = package.module("vllm/entrypoints/launchers/run_batch.py", "vllm/entrypoints/openai/run_batch.py")
    data = package.module(_BENCH + "datasets/datasets.py", _BENCH + "datasets.py")
    data_flags = flags_in(package, data)
    llm = package.classes["LLM"]
    variables = package.module("vllm/envs.py")
    batch_base = {f"--{name.replace('_', '-')}": entry for name, entry in base.items()}
    batch_class = package.fields("BatchFrontendArgs") if "BatchFrontendArgs" in package.classes else {}
    batch_flags = {f"--{name.replace('_', '-')}": entry for name, entry in batch_class.items()}
    has_base = batch_base if batch_class else {}
    return {
        "version": package.version,
        "serve": flags_in(package, cli) | frontend | all_engine,
        "run-batch": has_base | batch_flags | flags_in(package, batch) | all_engine,
        "bench serve": data_flags | flags_in(package, package.module(_BENCH + "serve.py")),
        "bench throughput": {
            **(data_flags if "datasets/" in "".join(package.modules) else {}),
            **flags_in(package, package.module(_BENCH + "throughput.py")),
            **all_engine,
        },
        "bench latency": flags_in(package, package.module(_BENCH + "latency.py")) | engine_flags,
        "EngineArgs": package.fields("EngineArgs"),
        "AsyncEngineArgs": package.fields("AsyncEngineArgs"),
        "LLM": keywords_of(package, _functions(llm, "__init__")),
        "LLM.chat": keywords_of(package, _functions(llm, "chat")),
        "LLM.generate": keywords_of(package, _functions(llm, "generate")),
        "SamplingParams": keywords_of(package, _functions(package.classes["SamplingParams"], "from_optional"))
        | package.fields("SamplingParams"),
        "environment": _variables(variables),
    }


def _variables(tree: ast.Module) -> dict[str, Entry]:
    """Names of the table, and the defaults that its declarations above give."""
    declared = {
        node.target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    table = declared["environment_variables"]
    assert isinstance(table, ast.Dict)
    names = [key.value for key in table.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    found: dict[str, Entry] = {}
    for name in names:
        value = declared.get(name)
        simple = isinstance(value, ast.Constant) and isinstance(value.value, _SIMPLE)
        found[name] = {"default": value.value} if isinstance(value, ast.Constant) and simple else {}
    return found


def lines_of(found: dict[str, Any]) -> str:
    """JSON with one entry a line, names sorted."""
    parts = []
    for section, entries in found.items():
        if not isinstance(entries, dict):
            parts.append(f" {json.dumps(section)}: {json.dumps(entries)}")
            continue
        inner = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(entries[name], sort_keys=True)}" for name in sorted(entries)
        )
        parts.append(f" {json.dumps(section)}: {{\n{inner}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}"


if __name__ == "__main__":
    print(lines_of(everything(Package(sys.argv[1]))))
