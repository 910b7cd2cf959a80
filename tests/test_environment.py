"""Variables of the environment: one module reads them, with types, defaults and refusals."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tilewise
from tilewise.config import FLASHCOMM_TOKENS, EngineConfig
from tilewise.environment import READ, VARIABLES, Environment
from tilewise.errors import InvalidConfig

_WRITTEN = {
    *("GLOO_SOCKET_IFNAME", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "PYTHONPATH", "PYTHONUNBUFFERED", "RAY_ADDRESS"),
    "XDG_CACHE_HOME",
}
"""Variables that are set for libraries and for processes of ours."""
_ENVIRONMENT = ("os.environ", "environment", "variables", "environment.variables")
_NAME = re.compile(r'"((?:VLLM|TILEWISE|HF|TRANSFORMERS|MODELSCOPE|OTEL|XDG|OMP)_[A-Z0-9_]+)"')


def test_no_other_module_reads_a_variable_by_name():
    root = Path(tilewise.__file__).parent
    for path in root.rglob("*.py"):
        if path.name != "environment.py" and "foreign" not in path.parts:
            text = path.read_text(encoding="utf-8")
            found = {*read_by_name(ast.parse(text)), *_NAME.findall(text)}
            assert found <= _WRITTEN, f"{path.relative_to(root)}: declare it in tilewise/environment.py"


def read_by_name(tree: ast.AST) -> Iterator[str]:
    """Yield the name of each variable that is read, or the expression that it is worked out by."""
    for node in ast.walk(tree):
        key: ast.expr | None = None
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
            if node.func.attr == "getenv" or (node.func.attr == "get" and ast.unparse(node.func.value) in _ENVIRONMENT):
                key = node.args[0]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            key = node.slice if ast.unparse(node.value) in _ENVIRONMENT else None
        if key is not None:
            yield str(key.value) if isinstance(key, ast.Constant) else ast.unparse(key)


def test_a_reading_by_name_is_found():
    code = "os.environ.get('A'), environment['B'], os.getenv(name); os.environ['C'] = '1'"
    assert set(read_by_name(ast.parse(code))) == {"A", "B", "name"}


def test_every_variable_is_there_once():
    names = [entry.name for entry in VARIABLES]
    assert len(names) == len(set(names))
    assert {"VLLM_USE_MODELSCOPE", "VLLM_MAX_N_SEQUENCES", "HF_ENDPOINT", "TERM"} <= {entry.name for entry in READ}
    assert all(entry.fate in ("honoured", "own") for entry in READ)


def test_defaults_stand_where_nothing_is_set():
    nothing = Environment()
    assert (nothing.logging_level, nothing.log_interval, nothing.ray_wait) == ("INFO", 10.0, 600.0)
    assert (nothing.kv_cache_gib, nothing.media_threads, nothing.allow_redirects) == (None, None, True)
    assert not any((nothing.use_modelscope, nothing.batch_invariant, nothing.offline, nothing.store_responses))


COUNT = "must be a whole number of at least 1 and at most 2,147,483,647"
WAIT = "must be a number of seconds, at least 0.001 and at most 1,000,000,000"


@pytest.mark.parametrize(
    ("attribute", "text", "message"),
    [
        ("media_threads", "0", f"VLLM_MEDIA_LOADING_THREAD_COUNT {COUNT}, found '0'."),
        ("stored_responses", "many", f"TILEWISE_MAX_STORED_RESPONSES {COUNT}, found 'many'."),
        ("log_interval", "soon", "VLLM_LOG_STATS_INTERVAL must be a number of seconds, at least 0, found 'soon'."),
        ("ray_wait", "0", f"TILEWISE_RAY_WAIT {WAIT}, found '0'."),
        ("log_interval", "nan", "VLLM_LOG_STATS_INTERVAL must be a number of seconds, at least 0, found 'nan'."),
        ("kv_cache_gib", "inf", "VLLM_CPU_KVCACHE_SPACE must be a number of GiB, at least 0, found 'inf'."),
        (
            *("cuda_kernels", "avx2"),
            "TILEWISE_CUDA_KERNELS must be 0 (no kernels), 1 (all of them), or left out, found 'avx2'.",
        ),
        ("kv_cache_gib", "4G", "VLLM_CPU_KVCACHE_SPACE must be a number of GiB, at least 0, found '4G'."),
    ],
)
def test_what_is_no_such_value_is_refused_when_it_is_asked_for(attribute, text, message):
    name = getattr(Environment, attribute).name
    environment = Environment({name: text})
    with pytest.raises(InvalidConfig) as refusal:
        getattr(environment, attribute)
    assert str(refusal.value) == message


def test_switches_have_the_words_that_they_have_in_vllm():
    assert Environment({"VLLM_USE_MODELSCOPE": "True"}).use_modelscope
    assert not Environment({"VLLM_BATCH_INVARIANT": "true"}).batch_invariant
    assert not Environment({"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "False"}).allow_redirects
    assert not Environment({"VLLM_SERVER_DEV_MODE": "0"}).developer_routes
    assert Environment({"HF_HUB_OFFLINE": "yes"}).offline
    assert Environment({"TRANSFORMERS_OFFLINE": "1"}).offline


def test_an_option_that_is_left_open_may_be_set():
    """And travels in the options then, so that engines elsewhere choose alike."""
    environment = Environment({"VLLM_ASCEND_ENABLE_FLASHCOMM1": "1"})
    assert EngineConfig.of(environment, tensor_parallel_size=2).layout.spread_rows == FLASHCOMM_TOKENS
    assert Environment({"VLLM_ASCEND_ENABLE_FLASHCOMM1": "2"}).flashcomm
    with pytest.raises(InvalidConfig, match="VLLM_ASCEND_ENABLE_FLASHCOMM1 must be 0 or 1, found 'on'"):
        EngineConfig.of(Environment({"VLLM_ASCEND_ENABLE_FLASHCOMM1": "on"}))
    assert EngineConfig.of(environment, sequence_parallel_tokens=8).layout.spread_rows == 8
    assert EngineConfig.of(environment, sequence_parallel_tokens=0).layout.spread_rows is None


def test_all_variables_are_checked_together_before_a_model_is_loaded():
    Environment({"VLLM_MAX_N_SEQUENCES": "7", "PATH": "/"}).check()
    with pytest.raises(InvalidConfig, match="VLLM_MAX_N_SEQUENCES must be a whole number"):
        Environment({"VLLM_MAX_N_SEQUENCES": "many"}).check()


def test_no_keys_are_shown():
    found = Environment({"VLLM_API_KEY": "x", "VLLM_USE_V1": "1", "TILEWISE_HOME": "/t", "PATH": "/"}).shown
    assert found == {"TILEWISE_HOME": "/t", "VLLM_USE_V1": "1"}
