"""Runs the linters of `make lint-deploy` over deploy/ and .github/, and exits with 1 if one of them finds anything.

kubectl and systemd-analyze are used where they are installed; the others are in requirements-lint.txt.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import promql_parser
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent
BIN = Path(sys.executable).parent
UNIT = HERE / "systemd" / "tilewise.service"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
KINDS = ("v1", "apps/v1", "autoscaling/v2")
"""Versions of Kubernetes's own APIs, whose schemas kubernetes-validate has."""


def main() -> int:
    checks = [*_images(), *_yaml(), *_kubernetes(), *_systemd(), _queries()]
    for name, problems in checks:
        print(f"{name}: {problems or 'ok'}")
    return int(any(problems for _, problems in checks))


def _run(command: Sequence[str | Path], warnings: bool = False) -> str:
    """Return what a linter has to say, or nothing if it is content; `warnings` are problems where they end with 0."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip()
    return "" if done.returncode == 0 and not (warnings and said) else said or f"status {done.returncode}"


def _images() -> Iterator[tuple[str, str]]:
    for file in sorted((HERE / "docker").glob("Dockerfile*")):
        yield f"hadolint {file.name}", _run([BIN / "hadolint", file])


def _yaml() -> Iterator[tuple[str, str]]:
    yield "yamllint", _run([BIN / "yamllint", "--strict", "-c", HERE / "yamllint.yml", HERE, *WORKFLOWS])
    schema = [BIN / "check-jsonschema", "--builtin-schema"]
    yield "schema of compose", _run([*schema, "vendor.compose-spec", *(HERE / "compose").glob("compose*.yaml")])
    yield "schema of workflows", _run([*schema, "vendor.github-workflows", *WORKFLOWS])
    yield "zizmor", _run([BIN / "zizmor", "--offline", "--quiet", *WORKFLOWS])


def _kubernetes() -> Iterator[tuple[str, str]]:
    if shutil.which("kubectl") is None:
        yield (
            "kubernetes-validate",
            _run([BIN / "kubernetes-validate", "--strict", *_own(HERE / "kubernetes" / "base")]),
        )
        return
    for folder in ("base", "cuda"):
        built = subprocess.run(["kubectl", "kustomize", HERE / "kubernetes" / folder], capture_output=True, text=True)
        if built.returncode:
            yield f"kubectl kustomize {folder}", built.stderr
            continue
        objects = [item for item in yaml.safe_load_all(built.stdout) if item["apiVersion"] in KINDS]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(objects, file)
            file.flush()
            problems = _run([BIN / "kubernetes-validate", "--strict", file.name])
        yield f"kubectl kustomize {folder}, kubernetes-validate of {len(objects)} objects", problems


def _own(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.yaml") if yaml.safe_load(file.read_text()).get("apiVersion") in KINDS]


def _systemd() -> Iterator[tuple[str, str]]:
    if shutil.which("systemd-analyze") is None:
        return
    for name in ("", "cuda.conf"):
        with tempfile.TemporaryDirectory() as folder:
            unit = Path(folder) / UNIT.name
            # The program is not installed here.
            unit.write_text(UNIT.read_text().replace("/opt/tilewise/bin/tilewise", shutil.which("true") or "/bin/true"))
            if name:
                drop_in = unit.with_name(f"{unit.name}.d")
                drop_in.mkdir()
                shutil.copy(UNIT.with_name(name), drop_in)
            yield f"systemd-analyze verify {name}".strip(), _run(["systemd-analyze", "verify", unit], warnings=True)


def _queries() -> tuple[str, str]:
    rules = yaml.safe_load((HERE / "compose" / "alerts.yml").read_text())["groups"][0]["rules"]
    problems = []
    for rule in rules:
        try:
            promql_parser.parse(rule["expr"])
        except ValueError as error:
            problems.append(f"{rule['alert']}: {error}")
    return f"PromQL of {len(rules)} alerts", "; ".join(problems)


if __name__ == "__main__":
    sys.exit(main())
