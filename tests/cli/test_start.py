"""What `tilewise start` makes of its words, and of grps's files."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.called import read_settings
from tilewise.cli import main
from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.settings import make_settings
from tilewise.cli.services import START, StartOrder, as_yaml
from tilewise.errors import InvalidConfig

SERVER_YML = """\
interface:
  framework: http
  host: 0.0.0.0
  port: 9998,9997
  customized_predict_http: {path: /v1/chat/completions, customized_body: true}
max_connections: 1000
max_concurrency: 16
gpu: {devices: [0], mem_manager_type: none}
log: {log_dir: ./logs, log_backup_count: 7}
enable_prefix_caching: false
"""
INFERENCE_YML = """\
models:
  - name: your_model
    version: 1.0.0
    device: auto
    inferer_type: customized
    inferer_name: trtllm_inferer
    inferer_args:
      llm_style: internvl3
      tokenizer_path: /tmp/InternVL3-8B/
      vit_path: /tmp/InternVL3-8B/vision_encoder_bfp16.trt
      sampling: {top_k: 50, top_p: 1.0}
      kv_cache_free_gpu_mem_fraction: 0.6
      enable_kv_cache_reuse: true
dag: {type: sequential, nodes: []}
"""


def read_order(words: Sequence[str]) -> StartOrder:
    return StartOrder.of(START.read(words))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.yml").write_text(SERVER_YML)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "inference_internvl3.yml").write_text(INFERENCE_YML)
    return tmp_path


def test_the_commands_of_the_guide(files, capsys):
    assert main(["archive", "."]) == 0
    assert "Nothing was packed" in capsys.readouterr().out
    order = read_order(["./server.mar", "--inference-conf=conf/inference_internvl3.yml"])
    settings = make_settings(order.values, {})
    assert order.name == "my_grps"
    assert settings.server.port == 9997
    assert settings.engine.model == "/tmp/InternVL3-8B"
    assert settings.server.served_model_name == ("InternVL3", "your_model")
    assert settings.server.override_generation_config == {"top_k": 50, "top_p": 1.0}
    assert order.lines == [
        "inferer_args: vit_path, kv_cache_free_gpu_mem_fraction: "
        "the checkpoint says it, or there is no such thing here.",
        "./server.mar: no archive is needed, the checkpoint is read as it is.",
    ]


def test_a_server_yml_of_grps_and_of_flags(files):
    order = read_order(["server.yml", "--max-num-seqs", "8"])
    settings = make_settings(order.values, {})
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 9998)
    assert settings.engine.max_num_seqs == 8, "the command line wins"
    assert settings.engine.enable_prefix_caching is False
    for about in ("interface.framework", "customized_predict_http", "max_connections", "gpu", "log"):
        assert any(about in line for line in order.lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_concurrency", "max_concurency", "there is no flag 'max_concurency'. Did you mean"),
        ("interface:", "interfaces:", "Did you mean interface?"),
        ("framework", "framwork", "interface has no key 'framwork'. Did you mean framework?"),
        ("9998,9997", "http", "interface.port must be a number"),
        ("max_concurrency: 16", "max_concurrency: many", "max_concurrency must be a number, got 'many'"),
    ],
)
def test_slips_in_a_server_yml(files, old, new, message):
    (files / "server.yml").write_text(SERVER_YML.replace(old, new))
    with pytest.raises(InvalidConfig) as caught:
        read_order(["server.yml"])
    assert message in str(caught.value)


def test_slips_in_an_inference_yml(files):
    path = files / "conf" / "inference_internvl3.yml"
    path.write_text(INFERENCE_YML.replace("tokenizer_path", "tokeniser_path"))
    with pytest.raises(InvalidConfig, match="inferer_args has no key 'tokeniser_path'"):
        read_order(["--inference_conf", str(path)])
    path.write_text("models: []")
    with pytest.raises(InvalidConfig, match="must be a list of one model"):
        read_order(["--inference_conf", str(path)])


def test_mpi_is_tensor_parallelism():
    assert read_order(["m", "--mpi_np", "2"]).values["tensor_parallel_size"] == 2


def test_flags_survive_the_file_that_they_are_handed_on_in(tmp_path):
    words = (
        *("some/model", "--served-model-name", "123", "b", "--limit-mm-per-prompt", "image=4"),
        *("--disable-access-log-for-endpoints", "/health,/metrics", "--max-model-len", "16K", "--no-async-scheduling"),
        *("--max-logprobs", "-1", "--shutdown-timeout", "2.5", "--mm-processor-kwargs", '{"max_dynamic_patch": 6}'),
        *("--api-key", "null", "--root-path", "/模型", "--quantization", "None", "-cc.cudagraph_mode", "NONE"),
    )
    order = read_order(words)
    path = tmp_path / "flags.yml"
    path.write_text(as_yaml(order.values), encoding="utf-8")
    direct, handed = make_settings(order.values, {}), read_settings(["--config", str(path)], {})
    assert (handed.engine, handed.server) == (direct.engine, direct.server)
    assert handed.server.served_model_name == ("123", "b")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["OpenGVLab/InternVL3-8B"], "InternVL3-8B"),
        (["./my model/"], "my-model"),
        (["m", "--served-model-name", "first", "second"], "first"),
        ([], "demo"),
        (["..."], "model"),
    ],
)
def test_a_service_is_named_like_its_model(words, name):
    assert read_settings(words, {}).name == name


def test_help_and_two_models(capsys):
    assert main(["start", "--help"]) == 0
    assert "tilewise start [MODEL | server.yml]" in capsys.readouterr().out
    with pytest.raises(BadUsage, match="One model is served"):
        read_order(["a", "b"])
