"""Layers, and what is refused or explained."""

from __future__ import annotations

import re
from typing import get_args

import pytest

import tilewise.config
from tests.called import read_settings
from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.parse import read_yaml
from tilewise.cli.flags.settings import FOREIGN, flag_of
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.foreign.translate import ForeignOption
from tilewise.ignored import IgnoredLog


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "flags.yml"
        path.write_text(text)
        return str(path)

    return write


def test_the_line_wins_over_the_file_and_the_file_over_the_environment(file):
    environment = {"VLLM_API_KEY": "from-environment", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "7"}
    path = file("port: 1\nmax-num-seqs: 2\napi_key: [from-file]\n")
    settings = read_settings(["--config", path, "--port", "3"], environment)
    assert (settings.server.port, settings.engine.max_num_seqs) == (3, 2)
    assert settings.server.api_key == ("from-file",)
    assert settings.server.timeout_keep_alive == 7
    assert read_settings([], environment).server.api_key == ("from-environment",)


def test_a_file_has_yaml_types_and_both_spellings(file):
    path = file(
        "model: some/folder\nmax_model_len: 40K\nenable-prefix-caching: false\nserved-model-name: [a, b]\n"
        "limit_mm_per_prompt: {image: {count: 4}}\nasync-scheduling: null\nmax_body_mb: 1.5\n"
        "disable_access_log_for_endpoints: /health,/metrics\ncompilation_config:\n  cudagraph_mode: FULL\n"
    )
    settings = read_settings(["--config", path], {})
    engine, server = settings.engine, settings.server
    assert (engine.model, engine.max_model_len, engine.enable_prefix_caching) == ("some/folder", 40960, False)
    assert (engine.limit_mm_per_prompt, engine.async_scheduling) == ({"image": 4}, None)
    assert (server.served_model_name, server.max_body_mb) == (("a", "b"), 1.5)
    assert server.disable_access_log_for_endpoints == ("/health", "/metrics")
    assert "cudagraph_mode FULL became FULL_DECODE_ONLY" in settings.lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("api-key:\n", "api-key has no value: give one, or leave the line out"),
        ("api-key: []\n", "api-key has no value"),
        ("api-key: [a, null]\n", "api-key has no value"),
        ("served-model-name: null\n", "served-model-name has no value"),
        ("allowed-media-domains: ~\n", "allowed-media-domains has no value"),
        ("model:\n", "model has no value"),
        ("port: 1\napi-key: a\nport: 2\n", "the key 'port' stands there twice"),
        (
            "compilation-config: {cudagraph_mode: FULL, cudagraph_mode: NONE}\n",
            "the key 'cudagraph_mode' stands there twice",
        ),
    ],
)
def test_a_template_that_nobody_filled_in_is_refused(file, text, said):
    """Else the word None would be a key, or a server that was meant to have one would have none."""
    with pytest.raises(InvalidConfig, match=re.escape(said)):
        read_settings(["--config", file(text)], {})


def test_a_file_may_take_what_it_has_elsewhere_and_change_some(file):
    text = "limit-mm-per-prompt: &most {image: 4, video: 1}\nmm-processor-kwargs: {<<: *most, image: 2}\n"
    assert read_yaml(file(text))["mm-processor-kwargs"] == {"image": 2, "video": 1}


def test_a_file_has_the_forms_of_the_command_line(file):
    path = file(
        "seed: 0\nno-enable-prefix-caching: true\ntp: 1\ncompilation-config: 3\nno_async_scheduling: false\n"
        "limit-mm-per-prompt.image: 3\nallowed-media-domains: [a.example, b.example]\nmodel: some/folder\n"
        "kv-cache-dtype: auto\nhf-overrides: {}\nswap-space: 4\n"
    )
    settings = read_settings(["--config", path], {})
    engine = settings.engine
    assert (engine.seed, engine.enable_prefix_caching, engine.async_scheduling) == (0, False, True)
    assert (engine.limit_mm_per_prompt, engine.model) == ({"image": 3}, "some/folder")
    assert engine.allowed_media_domains == ("a.example", "b.example")
    assert any(line.startswith("--swap-space: nothing is swapped") for line in settings.lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no-seed: 1", "there is no flag 'no-seed'"),
        ("port.x: 1", "port.x has no keys"),
        ("prot: 1", "there is no flag 'prot'. Did you mean port?"),
        ("port: x", "port must be a whole number"),
        ("eplb_config: 3", "eplb_config must be a mapping, got 3"),
        ("- a", "must map names of flags to values, got a list"),
        ("a: [", "cannot be read as YAML"),
        ("config: other.yml", "there is no flag 'config'"),
    ],
)
def test_a_file_that_cannot_be_used(file, text, message):
    with pytest.raises(InvalidConfig) as caught:
        read_settings(["--config", file(text)], {})
    assert message in str(caught.value)


def test_a_config_that_is_no_text(tmp_path):
    (tmp_path / "latin.yml").write_bytes(b"model: caf\xe9")
    for path, words in ((tmp_path, "is a folder: name the YAML file"), (tmp_path / "latin.yml", "is not UTF-8 text")):
        with pytest.raises(InvalidConfig, match=words) as caught:
            read_settings(["--config", str(path)], {})
        assert "Errno" not in str(caught.value)


def test_one_model():
    assert read_settings([], {}).engine.model == "demo"
    assert read_settings(["m"], {}).engine.model == read_settings(["--model", "m"], {}).engine.model == "m"
    for words in (["a", "b"], ["a", "--model", "b"]):
        with pytest.raises(BadUsage, match=r"a .*b"):
            read_settings(words, {})


REFUSED = [
    ("-dp 2 -dpl 1", "data_parallel_size_local=1 is not possible: all replicas are on this machine"),
    ("-dp 2 -dpn 0", "data_parallel_rank=0 is not possible with data_parallel_size=2"),
    ("-dp 2 -dpe", "data_parallel_external_lb=True is not possible: one server stands before all replicas"),
    ("-dp 0", "data_parallel_size must be above 0, got 0"),
    ("-tp 2 --nnodes 2", "nnodes=2"),
    ("-tp 2 --distributed-executor-backend uni", "distributed_executor_backend=uni"),
    ("--node-rank 1", "node_rank=1"),
    ("--chat-template x.jinja", "chat_template='x.jinja'"),
    ("--middleware a.b", "middleware=('a.b',)"),
    ("--video-pruning-rate 0.5", "video_pruning_rate=0.5"),
    ("--response-role user", "response_role='user'"),
    ("--media-io-kwargs.image.rgba_background_color [0]", "image has no 'rgba_background_color'"),
    ("--structured-outputs-config.backend xgramar", "Did you mean xgrammar?"),
    ("--structured-outputs-config.disable_fallback true", "cannot be set for all requests"),
    ("--media-io-kwargs.video.frames 3", "video has no 'frames'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_is_not_there_is_refused_by_name(words, message):
    with pytest.raises(InvalidConfig) as caught:
        read_settings(words.split(), {})
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["int8", "ascend", "awq", "gptq_marlin", "compressed-tensors", "fp8", "gguf"])
def test_quantisations_are_known_by_the_names_of_their_methods(name):
    assert read_settings(["-q", name], {}).engine.quantization == name


def test_no_quantisation_and_unknown_ones():
    assert read_settings(["--quantization", "None"], {}).engine.quantization is None
    with pytest.raises(BadUsage, match=r"--quantization must be one of int8, .*Did you mean awq\?"):
        read_settings(["-q", "aqw"], {})


def test_what_asks_for_what_is_so_anyway_is_accepted():
    words = "-tp 1 -pp 1 -dp 1 --quantization None --response-role assistant"
    assert read_settings(words.split(), {}).lines == []
    for words in (["--enable-chunked-prefill"], ["--no-enable-chunked-prefill"]):
        [line] = read_settings(words, {}).lines
        assert line.startswith("--enable-chunked-prefill: prompts are always computed in chunks")


def outcome(words: list[str]) -> list[str] | str:
    """Lines about what was accepted, or the refusal."""
    try:
        return read_settings(words, {}).lines
    except InvalidConfig as refusal:
        return str(refusal)


def some_value(entry: ForeignOption) -> str:
    """One that asks for something, or for all that an entry accepts."""
    if entry.fate == "built in" and entry.accepts:
        return str(entry.accepts[0]).lower()
    examples = {int: "7", float: "0.5", bool: "true", str: "x"}
    other = "backend=auto" if flag_of(entry).is_object else str((*get_args(flag_of(entry).type), "")[0])
    return examples.get(flag_of(entry).type, other)


def test_every_foreign_flag_is_explained_or_refused():
    entries = [entry for entry in FOREIGN if not entry.by_key and entry.fate != "other name"]
    assert [entry.name for entry in entries if not is_explained(entry)] == []


def is_explained(entry: ForeignOption) -> bool:
    value = "x" if flag_of(entry).is_list else some_value(entry)
    found = outcome([f"{flag_of(entry).dashed}={value}"])
    if entry.fate in ("not yet", "never"):
        return isinstance(found, str) and f"{entry.name}=" in found and entry.says in found
    return len(found) == 1 and found[0].startswith(flag_of(entry).dashed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ('-cc {"cudagraph_mod":"FULL"}', "no key 'cudagraph_mod'. Did you mean cudagraph_mode?"),
        ("-cc.cudagraph_mode FUL", "got 'FUL'. Did you mean FULL?"),
        ("-cc.cudagraph_capture_sizes [0]", "must be numbers from 1 on, got [0]"),
        ("-cc.cudagraph_capture_sizes [4] -cc.max_cudagraph_capture_size 8", "=8 is not the largest"),
    ],
)  # fmt: skip
def test_graphs_are_checked(words, message):
    with pytest.raises(InvalidConfig) as caught:
        read_settings(words.split(), {})
    assert message in str(caught.value)


def test_what_became_of_graphs():
    lines = read_settings(["-cc.cudagraph_mode", "full_and_piecewise", "-cc.level", "3"], {}).lines
    assert "FULL_AND_PIECEWISE became FULL_DECODE_ONLY" in lines[0]
    assert "level without effect" in lines[1]
    assert read_settings(["-cc.cudagraph_mode", "full_decode_only"], {}).lines == []


@pytest.mark.parametrize(
    ("words", "eager"),
    [
        ("", False),
        ("-cc.cudagraph_mode none", True),
        ("-O0", True),
        ("-O2", False),
        ("-O0 -cc.cudagraph_mode FULL", False),
    ],
)
def test_vllms_ways_to_say_eager(words, eager):
    assert read_settings(words.split(), {}).engine.enforce_eager is eager


def test_frames_of_videos_by_their_older_name():
    settings = read_settings(["--media-io-kwargs", '{"video": {"num_frames": 8, "fps": 2}}'], {})
    assert (settings.engine.num_frames, settings.engine.fps) == (8, 2)
    assert settings.lines == ["media_io_kwargs: became --num-frames 8.", "media_io_kwargs: became --fps 2."]


def test_unknown_keys_and_variables_are_named():
    words = ["--additional-config", '{"weight_nz_mod": 1}']
    warnings = read_settings(words, {"VLLM_USE_MODELSCOP": "1", "OTHER": "1"}).warnings
    assert warnings == [
        "additional_config: 'weight_nz_mod' is not known and has no effect. Did you mean weight_nz_mode?",
        "Unknown vLLM environment variable detected: VLLM_USE_MODELSCOP. Did you mean VLLM_USE_MODELSCOPE?",
    ]
    with pytest.raises(InvalidConfig, match="VLLM_USE_MODELSCOP"):
        read_settings(["--fail-on-environ-validation"], {"VLLM_USE_MODELSCOP": "1"})


def test_keys_are_not_in_what_is_logged():
    settings = read_settings(["--api-key", "hunter2"], {})
    assert "hunter2" not in repr(settings)
    assert settings.server.api_key == ("hunter2",)
    assert "hunter3" not in repr(read_settings([], {"VLLM_API_KEY": "hunter3"}))


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--seed 0", "seed", 0),
        ("--tokenizer demo --tokenizer-revision main", "tokenizer", "demo"),
        ("--hf-token secret", "hf_token", "secret"),
        ("--hf-token --seed 1", "hf_token", None),
        ("--load-format safetensors", "load_format", "safetensors"),
        ("--disable-mm-preprocessor-cache", "mm_processor_cache_gb", 0),
        ("--no-use-tqdm-on-load", "use_tqdm_on_load", False),
        ("--num-speculative-tokens 3", "speculative_config", {"num_speculative_tokens": 3}),
        (
            "--speculative-model m --num-speculative-tokens 3",
            "speculative_config",
            {"model": "m", "num_speculative_tokens": 3},
        ),
        ("--spec-method ngram --spec-tokens 2", "speculative_config", {"method": "ngram", "num_speculative_tokens": 2}),
        ("-O0", "enforce_eager", True),
        ("-cc 3", "enforce_eager", False),
        ("--cudagraph-capture-sizes 1 2 4", "enforce_eager", False),
    ],
)
def test_older_and_other_spellings_become_options(words, name, value):
    settings = read_settings(words.split(), {})
    assert getattr(settings.engine, name) == value
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--kv-cache-dtype-skip-layers 0", "KV blocks of all layers hold the same"),
        ("--task embed", "there is no pooling"),
        ("--enable-lora", "merged into the model, by --adapter"),
        ('--hf-overrides {"a":1}', "change it in a folder of your own"),
        ("--logprobs-mode processed_logprobs", "use raw_logprobs"),
        ("--cpu-offload-gb 4", "take a smaller model"),
        ("--cudagraph-capture-sizes x", "must be numbers from 1 on"),
    ],
)
def test_a_refusal_has_a_remedy(words, reason):
    with pytest.raises(InvalidConfig, match=f"{words.split()[0].strip('-').replace('-', '_')}.*{reason}"):
        read_settings(words.split(), {})


def test_python_takes_what_the_command_line_takes(caplog):
    config = EngineConfig.of(
        seed=0, limit_mm_per_prompt={"image": {"count": 1}}, swap_space=4, compilation_config=3, hf_token=True,
        enable_lora=False, kv_cache_dtype="auto", disable_mm_preprocessor_cache=True, allowed_local_media_path="",
        served_model_name="m", max_num_seqs=None,
    )  # fmt: skip
    assert (config.seed, config.limit_mm_per_prompt, config.mm_processor_cache_gb) == (0, {"image": 1}, 0)
    assert (config.hf_token, config.allowed_local_media_path) == (None, None)
    for refused in ({"enable_lora": True}, {"enable_lora": "False"}, {"device_ids": "1"}, {"chat_template": "x"}):
        with pytest.raises(InvalidConfig, match=f"^{next(iter(refused))}="):
            EngineConfig.of(**refused)


def test_what_has_no_effect_in_python_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(tilewise.config, "LOG", IgnoredLog())
    for _ in range(2):
        EngineConfig.of(num_lookahead_slots=0)
    said = [record.message for record in caplog.records if "num_lookahead_slots" in record.message]
    assert said == [
        "engine: num_lookahead_slots has no effect: the scheduler is the engine's own; answers do not depend on it"
    ]


def test_the_largest_picture_by_its_variable():
    assert read_settings([], {"VLLM_MAX_IMAGE_PIXELS": "1000"}).engine.max_image_pixels == 1000
