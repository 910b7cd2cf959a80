"""How flags are written: vLLM's parser, form by form."""

from __future__ import annotations

import pytest

from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.parse import _OF_OTHER_ENGINES, CommandLine, FlagIndex
from tilewise.cli.flags.settings import serve_flags
from tilewise.foreign.objects import counts_of


def read(*words: str) -> CommandLine:
    return CommandLine.read(words, serve_flags())


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("--max_num_seqs 3", {"max_num_seqs": 3}),
        ("--max_num_seqs=3", {"max_num_seqs": 3}),
        ("--served-model-name a_b c", {"served_model_name": ("a_b", "c")}),
        ("--served-model-name a_b --port 1", {"served_model_name": ("a_b",), "port": 1}),
        ("--served-model-na x", {"served_model_name": ("x",)}),
        ("--no-enable-pref", {"enable_prefix_caching": False}),
        ("--no_enable_prefix_caching", {"enable_prefix_caching": False}),
        ("--enable-prefix-caching false --port 1", {"enable_prefix_caching": False, "port": 1}),
        ("--enable-prefix-caching True", {"enable_prefix_caching": True}),
        ("--enable-prefix-caching=false", {"enable_prefix_caching": False}),
        ("--no-enable-prefix-caching=false", {"enable_prefix_caching": True}),
        ("--async-scheduling --async-scheduling", {"async_scheduling": True}),
        ("--no-async-scheduling --async-scheduling", {"async_scheduling": True}),
        ("--port 1 --port 2", {"port": 2}),
        ("-tp 2 -pp=3 -dp 4", {"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "data_parallel_size": 4}),
        ("-ep", {"enable_expert_parallel": True}),
        ("-O2", {"optimization_level": "2"}),
        ("-O 3", {"optimization_level": "3"}),
        ("--max-logprobs -1", {"max_logprobs": -1}),
        ("--shutdown-timeout .5", {"shutdown_timeout": 0.5}),
        ("--max-num-batched-tokens 16K", {"max_num_batched_tokens": 16384}),
        ("--max-model-len 25.6k", {"max_model_len": 25600}),
        ("--max-model-len 1M", {"max_model_len": 2**20}),
        ("--quantization None", {"quantization": None}),
        ("--allowed-local-media-path=", {"allowed_local_media_path": None}),
        ("--disable-access-log-for-endpoints /a,/b", {"disable_access_log_for_endpoints": ("/a", "/b")}),
        ('--allowed-origins ["https://a","https://b"]', {"allowed_origins": ("https://a", "https://b")}),
        ("--api-key a b", {"api_key": ("a", "b")}),
    ],
)  # fmt: skip
def test_forms(words, values):
    assert read(*words.split()).values == values


@pytest.mark.parametrize(
    "words",
    [
        ["--compilation-config", '{"cudagraph_mode": "FULL", "pass_config": {"enable_sp": true}}'],
        ["--compilation_config.cudagraph_mode", "FULL", "--compilation-config.pass_config.enable_sp", "true"],
        ["-cc.cudagraph_mode=FULL", "-cc.pass_config.enable_sp=true"],
        ["-cc", '{"cudagraph_mode": "NONE"}', "-cc.cudagraph_mode=FULL", "-cc.pass_config", '{"enable_sp": true}'],
    ],
)
def test_objects_as_json_and_key_by_key(words):
    expected = {"cudagraph_mode": "FULL", "pass_config": {"enable_sp": True}}
    assert read(*words).values == {"compilation_config": expected}


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--model-path", "--model"),
        ("-m", "--model"),
        ("--session-len", "--max-model-len"),
        ("--quant-policy", "--kv-cache-dtype"),
        ("--ctx-size", "--max-model-len"),
        ("-c", "--max-model-len"),
        ("--mem-fraction-static", "--gpu-memory-utilization"),
        ("--tp-size", "--tensor-parallel-size"),
        ("--prot", "--port"),
    ],
)
def test_flags_of_other_engines_and_near_misses(flag, meant):
    with pytest.raises(BadUsage, match=rf"There is no flag {flag}\. Did you mean {meant}\?"):
        read(flag, "1")


def test_what_other_flags_mean_is_there():
    assert set(_OF_OTHER_ENGINES.values()) <= FlagIndex.of(serve_flags()).names.keys()


def test_lists_inside_objects_grow():
    words = ("-cc.cudagraph_capture_sizes+", "4", "-cc.cudagraph_capture_sizes+=8,16")
    assert read(*words).values == {"compilation_config": {"cudagraph_capture_sizes": [4, 8, 16]}}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ('{"image": 16, "video": 2}', {"image": 16, "video": 2}),
        (
            '{"video": {"count": 1, "num_frames": 32, "width": 512, "height": 512}, "image": {"count": 5}}',
            {"video": 1, "image": 5},
        ),
        ('{"image": 16, "video": {"count": 1, "num_frames": 32}}', {"image": 16, "video": 1}),
        ("image=8,video=0", {"image": 8, "video": 0}),
    ],
)
def test_the_four_forms_of_limits(text, limits):
    found = read("--limit-mm-per-prompt", text).values["limit_mm_per_prompt"]
    counts, lines = counts_of(found)
    assert counts == limits
    sized = [kind for kind, limit in found.items() if isinstance(limit, dict) and len(limit) > 1]
    assert ["of video are for engines that profile" in line for line in lines] == [True] * len(sized)


def test_all_flags_that_are_none_are_told_at_once():
    """Somebody who comes from another server has several, and each start takes a while."""
    with pytest.raises(BadUsage) as caught:
        read("-m", "model.gguf", "--prot", "1", "--ctx-size", "8192", "--max-model-len", "64", "-ngl", "99")
    told = str(caught.value).splitlines()
    assert [line.split()[4].rstrip(".") for line in told] == ["-m", "--prot", "--ctx-size", "-ngl"]
    assert "Did you mean --port?" in told[1]


def test_a_text_may_begin_with_a_dash_and_a_number_with_a_point():
    line = read("a.png", "- what is it?", "--served-model-name", "- x y", "b", "-.5")
    assert line.values == {"served_model_name": ("- x y", "b", "-.5")}
    assert line.positional == ["a.png", "- what is it?"]


def test_words_that_are_no_flags_may_stand_anywhere():
    line = read("--port", "1", "model", "--trust-remote-code", "--", "--x")
    assert line.positional == ["model", "--x"]
    assert line.values == {"port": 1, "trust_remote_code": True}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prot 1", "There is no flag --prot. Did you mean --port?"),
        ("--no-port", "There is no flag --no-port. Did you mean"),
        ("--no-enable-prefix-cachng", "Did you mean --no-enable-prefix-caching?"),
        ("--max-num 1", "may be --max-num-active-seqs or --max-num-batched-tokens or "),
        ("--port", "--port needs a value."),
        ("--port --host x", "--port needs a value."),
        ("--port x", "--port must be a whole number"),
        ("--timeout-keep-alive 1.5", "--timeout-keep-alive must be a whole number"),
        ("--shutdown-timeout soon", "--shutdown-timeout must be a number, got 'soon'"),
        ("--dtype bfloat61", "float32, float, got 'bfloat61'. Did you mean bfloat16?"),
        ("--enable-prefix-caching=yes", "--enable-prefix-caching must be true or false, got 'yes'"),
        ("--compilation-config {x", "--compilation-config must be a JSON object"),
        ("--limit-mm-per-prompt image", "--limit-mm-per-prompt must be an object: JSON such as"),
        ('--limit-mm-per-prompt {"image":{"cuont":1}}', "width, height, got 'cuont'. Did you mean count?"),
        ("--allowed-origins [x", "--allowed-origins must be a JSON list"),
        ("--port.x 1", "--port has no keys"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_what_is_near(words, message):
    with pytest.raises(BadUsage) as caught:
        read(*words.split())
    assert message in str(caught.value)
