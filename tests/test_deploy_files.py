"""Files of deploy/ say what is so of Tilewise: flags, routes, metrics, variables, and the files that they name."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from docs.metrics import families
from prometheus_client.parser import text_string_to_metric_families

from tests.served import ROOT
from tilewise.cli.flags.settings import make_settings, values_of_line
from tilewise.cli.serve import SERVE
from tilewise.environment import Environment

DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile*"))
YAML = sorted(path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BASE = DEPLOY / "kubernetes" / "base"
TEXTS = [*YAML, *DOCKERFILES, *(DEPLOY / "systemd").iterdir(), ROOT / "docs" / "deploy.md"]
IMAGES = {"tilewise:cpu", "tilewise:cuda", "tilewise:ascend"}
_METRIC = re.compile(r"\b(?:vllm|tilewise):[a-z]\w+")
_PATH = re.compile(r"(?<![\w./-])(?:deploy|docs|\.github)/[\w./-]*\w")
ELSEWHERE = {"HF_HOME", "HF_TOKEN", "TRITON_CACHE_DIR", "PYTHONUNBUFFERED", "TORCH_DEVICE_BACKEND_AUTOLOAD", "PATH"}
"""Variables that libraries read."""

DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "pydantic_core": "pydantic",
    "opentelemetry": "opentelemetry-sdk",
    "datasets": "lm-eval",
    "pyarrow": "lm-eval",  # which needs both
}
"""Module -> the distribution that brings it, where that has another name."""


def document(*path: str) -> Any:
    return yaml.safe_load((DEPLOY.joinpath(*path)).read_text(encoding="utf-8"))


def every(value: Any, key: str) -> Iterator[Any]:
    """All values of a key, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for inner in value.values():
            yield from every(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from every(inner, key)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in text.splitlines() if line.strip()]


def patches() -> list[dict[str, Any]]:
    [patch] = document("kubernetes", "cuda", "kustomization.yaml")["patches"]
    return list(yaml.safe_load(patch["patch"]))


def container() -> dict[str, Any]:
    [only] = document("kubernetes", "base", "deployment.yaml")["spec"]["template"]["spec"]["containers"]
    return dict(only)


def production_stack() -> list[str]:
    """The words that the chart makes of its values (vllm-stack, templates/deployment-vllm-multi.yaml)."""
    engine = document("production-stack", "values.yaml")["servingEngineSpec"]
    [model] = engine["modelSpec"]
    config = model["vllmConfig"]
    assert set(config) == {"enablePrefixCaching", "enableChunkedPrefill", "maxModelLen", "maxNumSeqs", "extraArgs"}
    words = [model["modelURL"], "--host", "0.0.0.0", "--port", str(engine["containerPort"])]
    words += ["--enable-chunked-prefill", "--enable-prefix-caching", "--max-model-len", str(config["maxModelLen"])]
    return [*words, "--max-num-seqs", str(config["maxNumSeqs"]), *config["extraArgs"]]


def lines() -> dict[str, list[str]]:
    """Words behind `tilewise serve`, by where they stand."""
    arguments = container()["args"]
    on_gpus = list(arguments)
    for patch in patches():
        if patch["path"].endswith("/args/-"):
            on_gpus.append(patch["value"])
        elif "/args/" in patch["path"]:
            on_gpus[int(patch["path"].rpartition("/")[2])] = patch["value"]
    [runtime] = document("kserve", "servingruntime.yaml")["spec"]["containers"]
    service = document("kserve", "inferenceservice.yaml")
    [start] = re.findall(r"^ExecStart=\S+ serve (.*)", (DEPLOY / "systemd" / "tilewise.service").read_text(), re.M)
    return {
        "compose": document("compose", "compose.yaml")["services"]["tilewise"]["command"],
        "kubernetes": arguments,
        "kubernetes/cuda": on_gpus,
        "kserve": [*runtime["args"], *service["spec"]["predictor"]["model"]["args"]],
        "production-stack": production_stack(),
        "systemd": start.replace("/etc/tilewise", str(DEPLOY / "systemd")).split(),
    }


@pytest.mark.parametrize("file", [*YAML, *WORKFLOWS], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_is_yaml(file):
    documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    assert all(documents)
    assert len(documents) == 1 or all(one["kind"] for one in documents)


@pytest.mark.parametrize("where", lines())
def test_flags_are_those_of_serve(where):
    line = SERVE.read(lines()[where])
    settings = make_settings(values_of_line(line), {})
    assert settings.server.port in (8000, 8080)
    assert settings.server.shutdown_timeout > 0
    assert settings.server.max_num_queued_reqs == 256


def test_a_flag_that_is_none_would_be_found():
    with pytest.raises(ValueError, match="There is no flag --max-queue"):
        SERVE.read(["demo", "--max-queue", "3"])


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_starts_a_server_and_asks_for_its_health(file, demo_url):
    found = dict(instructions(file))
    assert json.loads(found["ENTRYPOINT"]) == ["tilewise", "serve"]
    assert found["USER"] == "10001"
    health = json.loads(found["HEALTHCHECK"].partition("CMD")[2])
    assert f", {found['EXPOSE']}," in health[-1]
    port = demo_url.rpartition(":")[2]
    assert subprocess.run([*health[:-1], health[-1].replace("8000", port)], check=False).returncode == 0
    broken = health[-1].replace("8000", port).replace("/health", "/none")
    assert subprocess.run([*health[:-1], broken], check=False).returncode != 0


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_an_image_copies_is_there_and_not_ignored(file):
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, rest in instructions(file):
        if name == "COPY":
            sources = shlex.split(rest)[:-1]
            assert set(sources) <= allowed
            assert all((ROOT / source).exists() for source in sources)
    assert ("RUN", "tilewise doctor") in instructions(file), "kernels are compiled while it is built"


def test_images_are_those_of_the_dockerfiles():
    built = {tag for file in DOCKERFILES for tag in re.findall(r"docker build .* -t (\S+) \.", file.read_text())}
    assert built == IMAGES
    named = {
        str(image)
        for file in YAML
        for one in yaml.safe_load_all(file.read_text())
        for image in every(one, "image")
        if isinstance(image, str) and image.startswith("tilewise:")
    }
    assert named <= IMAGES
    stack = document("production-stack", "values.yaml")["servingEngineSpec"]["modelSpec"][0]
    assert f"{stack['repository']}:{stack['tag']}" in IMAGES
    tags = [document("kubernetes", folder, "kustomization.yaml")["images"][0]["newTag"] for folder in ("base", "cuda")]
    assert {f"tilewise:{tag}" for tag in tags} <= IMAGES


def test_probes_and_scrapes_ask_for_routes(demo_url):
    paths = {"/health"}
    for file in YAML:
        for one in yaml.safe_load_all(file.read_text()):
            paths |= {probe["path"] for probe in every(one, "httpGet")}
            paths |= set(every(one, "metrics_path"))
            paths |= {end["path"] for ends in every(one, "podMetricsEndpoints") for end in ends}
            paths |= set(every(one, "prometheus.kserve.io/path"))
            paths |= {source["path"] for source in every(one, "metricsDataSource")}
    assert paths == {"/health", "/version", "/metrics"}
    documented = httpx.get(f"{demo_url}/openapi.json").json()["paths"]
    for path in paths:
        assert "get" in documented[path]
        assert httpx.get(demo_url + path).status_code == 200


def test_probes_come_with_a_port_that_the_server_listens_at():
    assert container()["ports"] == [{"name": "http", "containerPort": 8000}]
    assert {probe["port"] for probe in every(container(), "httpGet")} == {"http"}
    assert document("kubernetes", "base", "service.yaml")["spec"]["ports"][0]["targetPort"] == "http"
    assert document("kubernetes", "base", "podmonitor.yaml")["spec"]["podMetricsEndpoints"][0]["port"] == "http"
    [runtime] = document("kserve", "servingruntime.yaml")["spec"]["containers"]
    assert {probe["port"] for probe in every(runtime, "httpGet")} == {runtime["ports"][0]["containerPort"]} == {8080}
    pool, _ = yaml.safe_load_all((DEPLOY / "llm-d" / "inferencepool.yaml").read_text())
    assert pool["spec"]["targetPorts"] == [{"number": 8000}]
    [scraped] = document("compose", "prometheus.yml")["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["tilewise:8000"]}]


def test_who_selects_pods_selects_those_of_the_deployment():
    deployment = document("kubernetes", "base", "deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    pool, route = yaml.safe_load_all((DEPLOY / "llm-d" / "inferencepool.yaml").read_text())
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        document("kubernetes", "base", "service.yaml")["spec"]["selector"],
        document("kubernetes", "base", "podmonitor.yaml")["spec"]["selector"]["matchLabels"],
        pool["spec"]["selector"]["matchLabels"],
        document("llm-d", "router-values.yaml")["router"]["modelServers"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == pool["metadata"]["name"]
    scaled = document("kubernetes", "base", "autoscaler.yaml")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    [claim] = every(deployment, "claimName")
    assert claim == document("kubernetes", "base", "cache.yaml")["metadata"]["name"]
    assert document("kserve", "inferenceservice.yaml")["spec"]["predictor"]["model"]["runtime"] == "tilewise"


def test_time_to_end_is_longer_than_the_server_gives_requests():
    pod = document("kubernetes", "base", "deployment.yaml")["spec"]["template"]["spec"]
    [waits] = every(pod, "preStop")
    grace = {
        "kubernetes": pod["terminationGracePeriodSeconds"] - int(waits["exec"]["command"][1]),
        "compose": int(document("compose", "compose.yaml")["services"]["tilewise"]["stop_grace_period"].rstrip("s")),
        "systemd": int(re.findall(r"TimeoutStopSec=(\d+)", (DEPLOY / "systemd" / "tilewise.service").read_text())[0]),
        "production-stack": 30,
    }
    for where, seconds in grace.items():
        settings = make_settings(values_of_line(SERVE.read(lines()[where])), {})
        assert seconds > settings.server.shutdown_timeout, where


def test_metrics_are_those_of_a_server(demo_url):
    text = httpx.get(f"{demo_url}/metrics").text
    real = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    real |= {sample.name for family in families() for sample in family.samples}  # some are kept by reason
    named = {name for file in TEXTS for name in _METRIC.findall(file.read_text(encoding="utf-8"))} - IMAGES
    assert len(named) >= 6
    assert named <= real
    [info] = [line for line in text.splitlines() if line.startswith("vllm:cache_config_info{")]
    assert "block_size=" in info
    assert "num_gpu_blocks=" in info


def test_the_autoscaler_asks_for_metrics_that_the_adapter_makes():
    made = {rule["name"]["as"] for rule in document("kubernetes", "adapter-values.yaml")["rules"]["custom"]}
    assert made == {metric["name"] for metric in every(document("kubernetes", "base", "autoscaler.yaml"), "metric")}


def test_variables_are_read_by_somebody():
    known = {variable.name for variable in vars(Environment).values() if hasattr(variable, "fate")} | ELSEWHERE
    named = {item["name"] for item in container()["env"]}
    named |= set(document("compose", "compose.yaml")["services"]["tilewise"]["environment"])
    for unit in (DEPLOY / "systemd").glob("*.*"):
        named |= set(re.findall(r"^Environment=(\w+)=", unit.read_text(), re.MULTILINE))
    for file in DOCKERFILES:
        for name, rest in instructions(file):
            if name == "ENV":
                named |= {word.partition("=")[0] for word in shlex.split(rest)}
    assert named <= known
    assert {"XDG_CACHE_HOME", "TILEWISE_HOME", "VLLM_API_KEY"} <= named


def test_files_that_are_named_exist():
    for file in [*TEXTS, *WORKFLOWS, ROOT / "Makefile", ROOT / "CHANGELOG.md"]:
        for name in _PATH.findall(file.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{file.name} names {name}"
    compose = DEPLOY / "compose"
    for name in ("compose.yaml", "compose.cuda.yaml"):
        build = document("compose", name)["services"]["tilewise"]["build"]
        assert (compose / build["context"] / build["dockerfile"]).is_file()
    services = document("compose", "compose.yaml")["services"]
    for volume in (volume for service in services.values() for volume in service["volumes"]):
        source = volume.split(":")[0]
        assert (
            (compose / source).is_file()
            if source.startswith(".")
            else source in document("compose", "compose.yaml")["volumes"]
        )
    for folder in ("base", "cuda"):
        for name in document("kubernetes", folder, "kustomization.yaml")["resources"]:
            assert (DEPLOY / "kubernetes" / folder / name).exists()


def test_targets_that_workflows_make_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {target for file in WORKFLOWS for target in re.findall(r"run: make ([\w-]+)", file.read_text())}
    assert made == {"audit", "check", "test", "test-wheel", "lint-deploy"}
    assert made <= targets


def imported() -> Iterator[str]:
    """Modules of others that the package imports anywhere."""
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_a_wheel_brings_what_it_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[\[<>=]", one)[0].lower().replace("_", "-") for one in declared}
    foreign = set(imported()) - sys.stdlib_module_names - {"tilewise"}
    assert {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in foreign} <= names
